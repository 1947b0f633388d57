//! The way to nf_tables.

use std::io;
use std::os::fd::AsRawFd as _;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::message::{Attributes, Batch, HEADER, Kind, question};

/// Longest time to wait for the kernel, in seconds.
const PATIENCE: libc::time_t = 10;
/// `NLMSG_ERROR`
const ERROR: u16 = 2;
/// `NLMSG_DONE`
const DONE: u16 = 3;

/// A socket to nf_tables of the network namespace in which it was made.
pub(super) struct Nfnetlink(Socket);

impl Nfnetlink {
    /// Opens one.
    ///
    /// # Errors
    /// Where the kernel has no nf_tables, or this process may not use it.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        let patience = libc::timeval { tv_sec: PATIENCE, tv_usec: 0 };
        option(&socket, libc::SO_RCVTIMEO, &patience)?;
        Ok(Self(socket))
    }

    /// Puts a batch in force, whole or not at all.
    ///
    /// # Errors
    /// What the kernel says of the first message that it refuses.
    pub(super) fn commit(&self, batch: Batch) -> io::Result<()> {
        let (bytes, answered) = batch.finish();
        // A batch is one datagram, whatever its length.
        let room = libc::c_int::try_from(2 * bytes.len() + 65_536).unwrap_or(libc::c_int::MAX);
        option(&self.0, libc::SO_SNDBUFFORCE, &room).or_else(|_| option(&self.0, libc::SO_SNDBUF, &room))?;
        self.0.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        let mut first: Option<io::Error> = None;
        loop {
            let (bytes, _) = self.0.recv_from_full()?;
            for (kind, sequence, payload) in messages(&bytes) {
                if kind != ERROR {
                    continue;
                }
                let code = payload.get(..4).and_then(|c| c.try_into().ok()).map_or(0, i32::from_ne_bytes);
                if code != 0 && first.is_none() {
                    first = Some(io::Error::from_raw_os_error(-code));
                }
                // A batch that is refused as such is answered under its first message's number.
                if sequence == answered || (sequence == 0 && code != 0) {
                    return first.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Payloads of the answers to a question about all things of a kind.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn dump(&self, question: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.0.send_to(question, &SocketAddr::new(0, 0), 0)?;
        let mut all = Vec::new();
        loop {
            let (bytes, _) = self.0.recv_from_full()?;
            for (kind, _, payload) in messages(&bytes) {
                match kind {
                    DONE => return Ok(all),
                    ERROR => {
                        let code =
                            payload.get(..4).and_then(|c| c.try_into().ok()).map_or(0, i32::from_ne_bytes);
                        return Err(io::Error::from_raw_os_error(-code));
                    }
                    _ => all.push(payload.to_vec()),
                }
            }
        }
    }

    /// The number of the ruleset's last change by anybody.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn generation(&self) -> io::Result<u32> {
        self.0.send_to(&question(Kind::Generation, &Attributes::default()), &SocketAddr::new(0, 0), 0)?;
        loop {
            let (bytes, _) = self.0.recv_from_full()?;
            let Some((kind, _, payload)) = messages(&bytes).into_iter().next() else { continue };
            let number = |at: usize| payload.get(at..at + 4).and_then(|c| <[u8; 4]>::try_from(c).ok());
            if kind == ERROR {
                let code = number(0).map_or(0, i32::from_ne_bytes);
                return Err(io::Error::from_raw_os_error(-code));
            }
            // `struct nfgenmsg`, then NFTA_GEN_ID, which comes first.
            return number(8)
                .map(u32::from_be_bytes)
                .ok_or_else(|| io::Error::other("an answer that is cut off"));
        }
    }
}

/// Type, sequence number and payload of each message.
fn messages(mut bytes: &[u8]) -> Vec<(u16, u32, &[u8])> {
    let mut all = Vec::new();
    while let Some(header) = bytes.get(..HEADER) {
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let length = word(0) as usize;
        let Some(payload) = bytes.get(HEADER..length) else { break };
        all.push((u16::from_ne_bytes([header[4], header[5]]), word(8), payload));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

fn option<T>(socket: &Socket, name: libc::c_int, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `length` bytes from a value that is that long.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, std::ptr::from_ref(value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
