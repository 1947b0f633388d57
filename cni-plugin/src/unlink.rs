//! Removing an interface, until it is gone and no longer (docs/decisions/0011-del-returns-when-the-link-is-gone.md).
//!
//! RTM_DELLINK returns when the kernel has freed all that belonged to the interface, which takes an RCU
//! barrier: 12 to 20 ms in which nothing of the interface is left for anybody to see. A child waits for
//! that. The plugin waits for the kernel's announcement that the interface is gone, which comes after
//! one or two milliseconds.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use crate::netlink::Netlink;
use crate::wire;

/// `struct nlmsghdr`, then `struct ifinfomsg`: offsets of type, family and index.
const TYPE: u32 = 4;
const FAMILY: u32 = 16;
const INDEX: u32 = 20;
/// `RTMGRP_LINK` of linux/rtnetlink.h.
const RTMGRP_LINK: u32 = 1;
/// The error number in an answer: behind the header, negative.
const ERROR: usize = 16;

/// Removes an interface and, with a veth, its other end. That it is not there is no error.
///
/// # Errors
/// What the kernel says.
pub fn remove(ifindex: u32) -> Result<(), String> {
    let mut netlink = Netlink::open().map_err(|e| e.to_string())?;
    let attempt = announcements(ifindex).and_then(|gone| {
        let request = netlink.prepared(wire::remove(ifindex));
        let (result, report) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        start(&netlink, &request, &report)?;
        drop(report);
        Ok((gone, result))
    });
    match attempt {
        Ok((gone, result)) => {
            settled(&gone, &result).or_else(absent).map_err(|e| format!("cannot remove the interface: {e}"))
        }
        // No child: then the long way.
        Err(_) => match netlink.all(vec![wire::remove(ifindex)]) {
            Err(e) if e.errno() == Some(libc::ENODEV) => Ok(()),
            result => result.map_err(|e| e.to_string()),
        },
    }
}

/// Its namespace went at the same time, and took it along.
fn absent(e: io::Error) -> io::Result<()> {
    if e.raw_os_error() == Some(libc::ENODEV) { Ok(()) } else { Err(e) }
}

/// A socket that gets a message when the interface with this index is gone, and no other.
fn announcements(ifindex: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            libc::NETLINK_ROUTE,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // Loads take bytes for big-endian, netlink is in the machine's order. The filter comes before the
    // group, so that nothing slips through.
    let load = |size: u32, at: u32| libc::sock_filter {
        code: (libc::BPF_LD | size | libc::BPF_ABS) as u16,
        jt: 0,
        jf: 0,
        k: at,
    };
    let unless = |value: u32, skip: u8| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: 0,
        jf: skip,
        k: value,
    };
    let answer = |length: u32| libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: length,
    };
    let filter = [
        load(libc::BPF_H, TYPE),
        unless(u16::from_be_bytes(libc::RTM_DELLINK.to_ne_bytes()).into(), 5),
        // A bridge that loses a port announces that too, in its own family.
        load(libc::BPF_B, FAMILY),
        unless(0, 3),
        load(libc::BPF_W, INDEX),
        unless(u32::from_be_bytes(ifindex.to_ne_bytes()), 1),
        answer(u32::MAX),
        answer(0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the filter outlives the call, with the length that is told.
    let result = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            std::ptr::from_ref(&program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    nix::sys::socket::bind(fd, &nix::sys::socket::NetlinkAddr::new(0, RTMGRP_LINK))?;
    Ok(socket)
}

/// Sends `request` in a child, which writes the error number of the answer to `report`.
fn start(netlink: &Netlink, request: &[u8], report: &OwnedFd) -> io::Result<()> {
    // SAFETY: the child calls only what is safe after fork, whatever threads there were.
    match unsafe { libc::fork() } {
        0 => child(netlink.as_raw_fd(), request, report.as_raw_fd()),
        pid if pid < 0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Neither allocates nor locks. Keeps nothing that the plugin had open: neither the runtime's pipes,
/// whose end the runtime waits for, nor a lock.
fn child(netlink: RawFd, request: &[u8], report: RawFd) -> ! {
    let mut answer = [0_u8; 256];
    // SAFETY: the pointers are to buffers of the lengths given beside them; descriptors are plain numbers,
    // and both are above 2: standard input, output and error are open in a plugin.
    unsafe {
        libc::dup2(netlink, 0);
        libc::dup2(report, 1);
        libc::syscall(libc::SYS_close_range, 2, u32::MAX, 0);
        let sent = libc::send(0, request.as_ptr().cast(), request.len(), 0);
        let mut error = if sent < 0 { *libc::__errno_location() } else { libc::EIO };
        if sent >= 0 && libc::recv(0, answer.as_mut_ptr().cast(), answer.len(), 0) >= ERROR as isize + 4 {
            let [a, b, c, d] = [answer[ERROR], answer[ERROR + 1], answer[ERROR + 2], answer[ERROR + 3]];
            error = i32::from_ne_bytes([a, b, c, d]).wrapping_neg();
        }
        let error = error.to_ne_bytes();
        libc::write(1, error.as_ptr().cast(), error.len());
        libc::_exit(0)
    }
}

/// Waits for whichever comes first: that the interface is gone, or what the child has to say.
fn settled(gone: &OwnedFd, result: &OwnedFd) -> io::Result<()> {
    use std::os::fd::AsFd as _;
    let mut both =
        [PollFd::new(gone.as_fd(), PollFlags::POLLIN), PollFd::new(result.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut both, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(e) => return Err(e.into()),
        }
        // The filter lets nothing else pass.
        if both[0].revents().is_some_and(|e| e.contains(PollFlags::POLLIN)) {
            return Ok(());
        }
        let mut error = [0; 4];
        return match nix::unistd::read(result, &mut error)? {
            4 => match i32::from_ne_bytes(error) {
                0 => Ok(()),
                number => Err(io::Error::from_raw_os_error(number)),
            },
            _ => Err(io::Error::other("who removed it was killed")),
        };
    }
}
