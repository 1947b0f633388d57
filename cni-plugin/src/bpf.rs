//! The calls of `bpf(2)` that the plugin needs: open a pin, name a program, mark a slot, attach to tcx.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use fairlead_common::maps::{names, slot_of};

const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;

/// The agent's trampolines for a pod's interface.
#[derive(Debug)]
pub struct Trampolines {
    /// For tc ingress of the host's end.
    pub from_pod: Program,
    /// For tc egress of the host's end.
    pub to_pod: Program,
}

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
    /// The kernel's number of it.
    pub id: u32,
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Where a program is attached, as tcx counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tcx {
    /// `BPF_TCX_INGRESS`: what comes from the pod.
    Ingress = 46,
    /// `BPF_TCX_EGRESS`: what goes to the pod.
    Egress = 47,
}

/// Attaches a program to an interface by tcx, until the interface goes: no link holds it.
///
/// # Errors
/// What the kernel says; before 6.6 it has no tcx.
pub fn attach_tcx(ifindex: u32, hook: Tcx, program: &Program) -> io::Result<()> {
    #[repr(C)]
    #[derive(Default)]
    struct Attach {
        target_ifindex: u32,
        program: u32,
        attach_type: u32,
        flags: u32,
        replace: u32,
        relative: u32,
        expected_revision: u64,
    }
    let attach = Attach {
        target_ifindex: ifindex,
        program: program.fd.as_raw_fd().cast_unsigned(),
        attach_type: hook as u32,
        ..Attach::default()
    };
    // SAFETY: no pointers in it; the descriptor is open.
    unsafe { bpf(BPF_PROG_ATTACH, &attach) }.map(drop)
}

/// Numbers of the programs that tcx runs at a hook of an interface, in their order.
///
/// # Errors
/// What the kernel says; one without tcx has none there, which is no error.
pub fn tcx_programs(ifindex: u32, hook: Tcx) -> io::Result<Vec<u32>> {
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        target_ifindex: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        pad: u32,
        attach_flags_of_each: u64,
        link_ids: u64,
        link_attach_flags: u64,
        revision: u64,
    }
    // The kernel runs 64 at most.
    let mut ids = [0_u32; 64];
    let mut query = Query {
        target_ifindex: ifindex,
        attach_type: hook as u32,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        ..Query::default()
    };
    // SAFETY: `ids` has room for `count` and outlives the call, which writes into it and into `query`.
    let answer = unsafe { bpf_mut(BPF_PROG_QUERY, &mut query) };
    match answer {
        Ok(_) => Ok(ids.into_iter().take(query.count as usize).collect()),
        // No tcx, nothing attached, or no interface.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)) => Ok(vec![]),
        Err(e) => Err(e),
    }
}

impl Trampolines {
    /// Opens the pins in the frozen folder.
    ///
    /// # Errors
    /// With the pin's path, where it is not there or is no program.
    pub fn open(frozen: &Path) -> io::Result<Self> {
        let open = |name| {
            let path = frozen.join(name);
            let told = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
            let fd = object(&path).map_err(told)?;
            let id = program_id(fd.as_fd()).map_err(told)?;
            Ok::<_, io::Error>(Program { fd, id })
        };
        Ok(Self { from_pod: open(names::FROM_POD)?, to_pod: open(names::TO_POD)? })
    }
}

/// Makes the endpoint behind interface `ifindex` drop everything from now on. A missing map is no
/// error: nothing can be enforced without it.
///
/// # Errors
/// Where the kernel refuses.
pub fn kill(frozen: &Path, ifindex: u32) -> io::Result<()> {
    let map = match object(&frozen.join(names::KILLED)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        map => map?,
    };
    #[repr(C)]
    struct Update {
        map_fd: RawFd,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let slot = slot_of(ifindex);
    let update = Update {
        map_fd: map.as_raw_fd(),
        pad: 0,
        key: std::ptr::from_ref(&slot) as u64,
        value: std::ptr::from_ref(&ifindex) as u64,
        flags: 0,
    };
    // SAFETY: key and value point to one u32 each, as the map has them, and outlive the call.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &update) }.map(drop)
}

/// Opens a pinned object.
fn object(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Get {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let get = Get { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: `path` is a string that outlives the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &get) }?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    /// The beginning of `struct bpf_prog_info`.
    #[repr(C)]
    #[derive(Default)]
    struct ProgramInfo {
        kind: u32,
        id: u32,
    }
    #[repr(C)]
    struct InfoByFd {
        fd: RawFd,
        len: u32,
        info: u64,
    }
    let mut info = ProgramInfo::default();
    let get = InfoByFd {
        fd: program.as_raw_fd(),
        len: size_of::<ProgramInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: `info` has the length that is told and outlives the call.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &get) }?;
    Ok(info.id)
}

/// # Safety
/// See [`bpf`]; the kernel writes into `attributes`.
unsafe fn bpf_mut<T>(command: libc::c_long, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: the caller's promise.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>() as libc::c_long)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

/// # Safety
/// `attributes` must be what `command` expects, its pointers valid for the call.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<RawFd> {
    // SAFETY: the caller's promise.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>() as libc::c_long)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}
