//! UDP servers and exchanges.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::namespace::Namespace;

/// A UDP server: answers each datagram with its own name and the client's address.
#[derive(Debug)]
pub struct Server {
    task: JoinHandle<()>,
}

impl Server {
    /// Serves on all addresses of a namespace, in both families.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn open(namespace: &Namespace, name: &str, port: u16) -> Result<Self> {
        let socket = bound(namespace, SocketAddr::from(([0_u16; 8], port))).await?;
        let name = name.to_owned();
        Ok(Self {
            task: tokio::spawn(async move {
                let mut buffer = [0; 64];
                loop {
                    // An ICMP error about an answer is no reason to stop.
                    if let Ok((_, client)) = socket.recv_from(&mut buffer).await {
                        let answer = format!("{name} {}\n", client.ip().to_canonical());
                        let _ = socket.send_to(answer.as_bytes(), client).await;
                    }
                }
            }),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A socket of a namespace, bound to an address.
///
/// # Errors
/// When the address is taken, or is none of the namespace's.
pub async fn bound(namespace: &Namespace, address: SocketAddr) -> Result<UdpSocket> {
    let work = move || {
        let socket = std::net::UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        std::io::Result::Ok(socket)
    };
    let socket = namespace.run(work).await?;
    let socket = socket.with_context(|| format!("{}: no socket at {address}", namespace.name()))?;
    Ok(UdpSocket::from_std(socket)?)
}

/// Source ports of [`connected`]: none is used twice, since a flow of the one before would still be known. The kernel
/// chooses at random, and so now and then the same. Neither servers, NodePorts nor ephemeral ports lie in the range.
static PORT: AtomicU16 = AtomicU16::new(10_000);

/// A socket of a namespace that talks to one address only, from a source address of its own or the kernel's choice.
///
/// # Errors
/// When the namespace has no such source, or no route.
pub async fn connected(from: &Namespace, source: Option<IpAddr>, to: SocketAddr) -> Result<UdpSocket> {
    let any = if to.is_ipv4() { IpAddr::from([0_u8; 4]) } else { IpAddr::from([0_u16; 8]) };
    let port = PORT.fetch_add(1, Ordering::Relaxed);
    anyhow::ensure!(port < 30_000, "no source port is left");
    let socket = bound(from, SocketAddr::new(source.unwrap_or(any), port)).await?;
    socket.connect(to).await.with_context(|| format!("{}: no way to {to}", from.name()))?;
    Ok(socket)
}
