//! ICMP echo.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::capture::Capture;
use crate::namespace::{Namespace, sysctl};

/// How long a request or a reply may take.
const SILENCE: Duration = Duration::from_secs(5);

/// Sends a request with this payload and takes the reply, which must hold the same; returns the address that the
/// request arrives from.
///
/// # Errors
/// Where a request or a reply does not arrive, or not as it was sent.
pub async fn echo(from: &Namespace, to: &Namespace, address: IpAddr, payload: &[u8]) -> Result<IpAddr> {
    let mut capture = Capture::open(to).await?;
    let mut socket = from
        .run(move || -> Result<Socket> {
            // Sockets of ICMP echo for everybody: the kernel sees to identifier and checksum.
            sysctl("ipv4/ping_group_range", "0\t2147483647")?;
            let socket = if address.is_ipv4() {
                Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4))?
            } else {
                Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::ICMPV6))?
            };
            socket.set_read_timeout(Some(SILENCE))?;
            socket.connect(&SocketAddr::new(address, 0).into())?;
            Ok(socket)
        })
        .await??;
    let what = || format!("echo of {} bytes from {} to {address}", payload.len(), from.name());
    let (request, reply, protocol) = if address.is_ipv4() { (8, 0, 1) } else { (128, 129, 58) };
    let message = [&[request, 0, 0, 0, 0, 0, 0, 1][..], payload].concat();
    socket.write_all(&message).with_context(what)?;
    let mut buffer = vec![0; 1 << 16];
    let length = socket.read(&mut buffer).with_context(|| format!("{}: no reply", what()))?;
    ensure!(buffer[0] == reply && buffer[8..length] == *payload, "{}: something else comes back", what());
    // Of a fragmented request the first fragment: behind an extension header in IPv6.
    let seen = capture.next(SILENCE, |seen| {
        let icmp = if seen.protocol == 44 { seen.payload.get(8..)? } else { seen.payload };
        let ours = seen.destination == address
            && [protocol, 44].contains(&seen.protocol)
            && icmp.first() == Some(&request)
            && icmp.get(8..).is_some_and(|rest| rest.starts_with(&payload[..payload.len().min(64)]));
        ours.then_some(seen.source)
    });
    seen.with_context(|| format!("{}: not seen there", what()))
}
