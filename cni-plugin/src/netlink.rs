//! A synchronous rtnetlink socket that sends several messages at once.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// `NLMSGERR_ATTR_MSG` of linux/netlink.h.
const ERROR_TEXT: u16 = 1;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

/// Longest answer, in bytes: the kernel makes none that is longer.
const LONGEST_ANSWER: usize = 64 << 10;

/// One message of a batch.
#[derive(Debug)]
pub struct Request {
    /// What it does, for errors: "make the veth".
    pub what: &'static str,
    /// The message.
    pub message: RouteNetlinkMessage,
    /// Flags beside REQUEST and ACK.
    pub flags: u16,
}

/// What the kernel refused, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}{}{text}", if text.is_empty() { "" } else { ": " })]
pub struct NetlinkError {
    /// What was being done.
    pub what: &'static str,
    /// The error number.
    pub source: io::Error,
    /// The kernel's own words, where it has some.
    pub text: String,
}

impl NetlinkError {
    /// The error number.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// A socket in one network namespace.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    /// Room for an answer, kept: to clear it for each costs more than the answer.
    buffer: Vec<u8>,
}

impl AsRawFd for Netlink {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Netlink {
    /// A socket in the namespace of this thread.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        // Older kernels dump more than was asked for.
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Self { socket, sequence: 0, buffer: vec![0; LONGEST_ANSWER] })
    }

    /// A request as it goes over the wire, for whoever sends it by himself.
    pub fn prepared(&mut self, request: Request) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.append(&mut bytes, request.message, NLM_F_ACK | request.flags);
        bytes
    }

    /// Sends all of `requests` in one go and says for each whether it was done. The kernel goes on
    /// after one that it refuses.
    ///
    /// # Errors
    /// Where nothing could be sent, or the answers do not fit.
    pub fn batch(&mut self, requests: Vec<Request>) -> io::Result<Vec<Result<(), NetlinkError>>> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let first = self.sequence + 1;
        let mut bytes = Vec::with_capacity(2048);
        let whats: Vec<&'static str> = requests.iter().map(|r| r.what).collect();
        let last = whats.len() - 1;
        for (i, request) in requests.into_iter().enumerate() {
            // What is refused is told in any case; after the last there is nothing more to wait for.
            let acknowledge = if i == last { NLM_F_ACK } else { 0 };
            self.append(&mut bytes, request.message, acknowledge | request.flags);
        }
        self.send(&bytes)?;
        let mut results: Vec<Result<(), NetlinkError>> = whats.iter().map(|_| Ok(())).collect();
        loop {
            for (sequence, kind, payload) in messages(self.receive()?) {
                let Some(i) = sequence.checked_sub(first).map(|i| i as usize) else { continue };
                if kind != libc::NLMSG_ERROR as u16 || i > last {
                    continue;
                }
                results[i] = outcome(whats[i], payload);
                if i == last {
                    return Ok(results);
                }
            }
        }
    }

    /// Sends all of `requests` in one go; the first that was refused is the error.
    ///
    /// # Errors
    /// See above.
    pub fn all(&mut self, requests: Vec<Request>) -> Result<(), NetlinkError> {
        let what = requests.first().map_or("send nothing", |r| r.what);
        self.batch(requests)
            .map_err(|source| NetlinkError { what, source, text: String::new() })?
            .into_iter()
            .collect()
    }

    /// Asks for everything that `message` is a question for.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.ask(message, NLM_F_DUMP)
    }

    /// Asks for the one thing that `message` is a question for.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        Ok(self.ask(message, NLM_F_ACK)?.pop())
    }

    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut bytes = Vec::new();
        self.append(&mut bytes, message, flags);
        self.send(&bytes)?;
        let mut found = Vec::new();
        loop {
            let sequence = self.sequence;
            let mut rest = self.receive()?;
            while rest.len() >= HEADER {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
                let length = (message.header.length as usize).max(HEADER).next_multiple_of(4);
                let ours = message.header.sequence_number == sequence;
                match message.payload {
                    NetlinkPayload::Done(_) if ours => return Ok(found),
                    NetlinkPayload::Error(e) if ours => {
                        return if e.code.is_none() { Ok(found) } else { Err(e.to_io()) };
                    }
                    NetlinkPayload::InnerMessage(inner) if ours => found.push(inner),
                    _ => {}
                }
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..start + message.buffer_len()]);
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = self.socket.send(bytes, 0)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::other("the kernel took half a batch")) }
    }

    /// rtnetlink works during `send`, so an answer that is not there will never be: rather an error
    /// than a plugin that hangs.
    fn receive(&mut self) -> io::Result<&[u8]> {
        loop {
            // SAFETY: `buffer` has that many bytes.
            let n = unsafe {
                libc::recv(
                    self.socket.as_raw_fd(),
                    self.buffer.as_mut_ptr().cast(),
                    self.buffer.len(),
                    libc::MSG_DONTWAIT | libc::MSG_TRUNC,
                )
            };
            match usize::try_from(n) {
                Ok(n) => {
                    let cut_short = || io::Error::other("an answer of the kernel was cut short");
                    return self.buffer.get(..n).ok_or_else(cut_short);
                }
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Sequence number, type and payload of each message.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u32, u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        let (kind, sequence) = (u16_at(bytes, 4)?, u32_at(bytes, 8)?);
        let payload = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((sequence, kind, payload))
    })
}

fn outcome(what: &'static str, payload: &[u8]) -> Result<(), NetlinkError> {
    let code = u32_at(payload, 0).unwrap_or_default() as i32;
    if code == 0 {
        return Ok(());
    }
    let mut text = String::new();
    // The error number, the header of what was asked, then attributes.
    let mut attributes = payload.get(4 + HEADER..).unwrap_or_default();
    while let (Some(length), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let length = usize::from(length).max(4);
        if kind & 0x3fff == ERROR_TEXT
            && let Some(value) = attributes.get(4..length)
        {
            text = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Err(NetlinkError { what, source: io::Error::from_raw_os_error(-code), text })
}
