//! Frames as they are on the wire: what no socket of a program's tells.

use std::io::Read as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::Namespace;

/// `ETH_P_ALL` of `linux/if_ether.h`.
const ALL: u16 = 3;
/// The longest that a frame gets before it is cut into segments.
const LONGEST: usize = 1 << 18;

/// What passes all interfaces of a namespace from now on, in either direction.
#[derive(Debug)]
pub struct Capture {
    socket: Socket,
    name: String,
}

impl Capture {
    /// Begins.
    ///
    /// # Errors
    /// When there is no packet socket to be had.
    pub async fn open(namespace: &Namespace) -> Result<Self> {
        let protocol = Protocol::from(i32::from(ALL.to_be()));
        let socket = namespace
            .run(move || Socket::new(Domain::PACKET, Type::RAW, Some(protocol)))
            .await?
            .with_context(|| format!("{}: no packet socket", namespace.name()))?;
        // Bursts of what is not looked for must not push out what is.
        socket.set_recv_buffer_size(8 << 20)?;
        Ok(Self { socket, name: namespace.name().to_owned() })
    }

    /// The next packet that is looked for. Blocks the thread.
    ///
    /// # Errors
    /// When none comes within `limit`.
    pub fn next<T>(&mut self, limit: Duration, mut wanted: impl FnMut(&Seen<'_>) -> Option<T>) -> Result<T> {
        let until = Instant::now() + limit;
        let mut buffer = vec![0; LONGEST];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{}: nothing that was looked for within {limit:?}", self.name);
            }
            self.socket.set_read_timeout(Some(left))?;
            let length = match self.socket.read(&mut buffer) {
                Ok(length) => length,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(e) => return Err(e.into()),
            };
            if let Some(found) = Seen::of(&buffer[..length]).and_then(|seen| wanted(&seen)) {
                return Ok(found);
            }
        }
    }
}

/// An IP packet as it was seen.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Type of service, or traffic class: DSCP and, in the last two bits, ECN.
    pub service: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// The IPv4 header's "don't fragment". IPv6 is never fragmented on its way.
    pub whole: bool,
    /// Whether it is a fragment.
    pub fragment: bool,
    /// IP protocol.
    pub protocol: u8,
    /// What is behind the IP header.
    pub payload: &'a [u8],
    /// All of it, from the IP header on.
    pub packet: &'a [u8],
}

impl<'a> Seen<'a> {
    /// Reads a frame; nothing where it is not IP's.
    pub fn of(frame: &'a [u8]) -> Option<Self> {
        let packet = frame.get(14..)?;
        match frame.get(12..14)? {
            [0x08, 0x00] => {
                let header = usize::from(*packet.first()? & 0xf) * 4;
                let address = |at: usize| -> Option<IpAddr> {
                    Some(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?.into())
                };
                let bits = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]);
                Some(Self {
                    source: address(12)?,
                    destination: address(16)?,
                    service: *packet.get(1)?,
                    hop_limit: *packet.get(8)?,
                    whole: bits & 0x4000 != 0,
                    fragment: bits & 0x3fff != 0,
                    protocol: *packet.get(9)?,
                    payload: packet.get(header..)?,
                    packet,
                })
            }
            [0x86, 0xdd] => {
                let address = |at: usize| -> Option<IpAddr> {
                    Some(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?.into())
                };
                let protocol = *packet.get(6)?;
                Some(Self {
                    source: address(8)?,
                    destination: address(24)?,
                    service: *packet.first()? << 4 | *packet.get(1)? >> 4,
                    hop_limit: *packet.get(7)?,
                    whole: true,
                    fragment: protocol == 44,
                    protocol,
                    payload: packet.get(40..)?,
                    packet,
                })
            }
            _ => None,
        }
    }

    /// Source and destination port of TCP or UDP.
    pub fn ports(&self) -> Option<(u16, u16)> {
        let port = |at: usize| Some(u16::from_be_bytes([*self.payload.get(at)?, *self.payload.get(at + 1)?]));
        Some((port(0)?, port(2)?))
    }

    /// What a VXLAN datagram (RFC 7348) to this UDP port holds.
    pub fn inside(&self, vxlan_port: u16) -> Option<Seen<'a>> {
        if self.protocol != 17 || self.fragment || self.ports()?.1 != vxlan_port {
            return None;
        }
        Seen::of(self.payload.get(16..)?)
    }
}
