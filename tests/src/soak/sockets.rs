//! Sockets in the namespaces of pods, made by one thread that goes from one to the other.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt::Linger};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

/// Time after which an attempt counts as dropped: less than TCP's first retransmission, so that each is
/// one packet.
pub(super) const LIMIT: Duration = Duration::from_millis(800);

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Pass,
    /// Nothing came back: what a policy does to what it denies.
    Silence,
    /// Anything else is wrong, whatever the rules say.
    Fault(String),
}

/// A network namespace that sockets can be made in.
#[derive(Debug)]
pub(super) struct Netns(pub(super) File);

impl Netns {
    /// Runs `make` in the namespace; the thread stays there until the next call.
    fn within<T>(&self, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        setns(&self.0, CloneFlags::CLONE_NEWNET)?;
        make()
    }

    pub(super) fn udp(&self, bind: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.within(|| std::net::UdpSocket::bind(bind))?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    }

    /// A server of both families.
    pub(super) fn udp_server(&self, port: u16) -> io::Result<UdpSocket> {
        self.udp((Ipv6Addr::UNSPECIFIED, port).into())
    }

    /// A client of one server.
    pub(super) async fn udp_client(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = self.udp((any, 0).into())?;
        socket.connect(to).await?;
        Ok(socket)
    }

    pub(super) fn tcp_server(&self, port: u16) -> io::Result<TcpListener> {
        let listener = self.within(|| std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    }

    pub(super) fn tcp(&self, to: SocketAddr) -> io::Result<TcpSocket> {
        self.within(|| if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() })
    }

    /// Opens a connection and resets it.
    pub(super) async fn try_tcp(&self, to: SocketAddr) -> Outcome {
        let connecting = match self.tcp(to) {
            Ok(socket) => socket.connect(to),
            Err(e) => return Outcome::Fault(format!("socket: {e}")),
        };
        match timeout(LIMIT, connecting).await {
            Ok(Ok(stream)) => reset(&stream),
            Ok(Err(e)) => Outcome::Fault(format!("connect: {e}")),
            Err(_) => Outcome::Silence,
        }
    }
}

/// Makes the end of a connection a reset, which leaves nothing behind at either end.
fn reset(stream: &TcpStream) -> Outcome {
    match setsockopt(stream, Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }) {
        Ok(()) => Outcome::Pass,
        Err(e) => Outcome::Fault(format!("linger: {e}")),
    }
}

/// Sends a number and waits for it to come back.
pub(super) async fn echo(socket: &UdpSocket, number: u64) -> Outcome {
    let exchange = async {
        socket.send(&number.to_ne_bytes()).await?;
        let mut answer = [0; 8];
        // Answers to earlier numbers that were given up may still come.
        while socket.recv(&mut answer).await? != answer.len() || u64::from_ne_bytes(answer) != number {}
        io::Result::Ok(())
    };
    match timeout(LIMIT, exchange).await {
        Ok(Ok(())) => Outcome::Pass,
        Ok(Err(e)) => Outcome::Fault(format!("UDP: {e}")),
        Err(_) => Outcome::Silence,
    }
}

/// Segments that a connection's end had to send again because they were lost. What was sent again and
/// then turned out to have arrived (the other end said so: DSACK) is not.
pub(super) fn lost_segments(stream: &TcpStream) -> io::Result<u32> {
    let mut info = [0_u8; 256];
    let mut length: nix::libc::socklen_t = 256;
    // SAFETY: the buffer is as long as said, and lives through the call.
    let result = unsafe {
        nix::libc::getsockopt(
            stream.as_raw_fd(),
            nix::libc::IPPROTO_TCP,
            nix::libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // include/uapi/linux/tcp.h: tcpi_total_retrans at 100, tcpi_dsack_dups at 216.
    let word = |at: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&info[at..at + 4]);
        u32::from_ne_bytes(bytes)
    };
    if length < 220 {
        return Err(io::Error::other("the kernel's tcp_info has no count of duplicates"));
    }
    Ok(word(100).saturating_sub(word(216)))
}
