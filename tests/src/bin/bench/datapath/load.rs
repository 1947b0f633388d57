//! Load between two namespaces.
//!
//! Own generators, because no packaged tool opens a connection for each request (netperf's TCP_CRR), and
//! so that all kinds are counted the same way.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_tests::namespace::Namespace;
use nix::time::{ClockId, clock_gettime};

/// Ports of the servers.
pub(crate) const PORTS: std::ops::RangeInclusive<u16> = 7000..=7006;
const ECHO: u16 = 7000;
const CONNECT: u16 = 7001;
const UDP_ECHO: u16 = 7002;
const UDP_SINK: u16 = 7003;
const STREAM: u16 = 7004;
/// As [`ECHO`] and [`CONNECT`], for many connections.
const ECHO_MANY: u16 = 7005;
const CONNECT_MANY: u16 = 7006;
/// Where both ends of a conversation run, which makes the scheduler no part of what is measured.
const HERE: usize = 0;
/// Where one receives what is sent from [`HERE`].
const THERE: usize = 1;
/// Threads that serve connections which last one request.
const ACCEPTORS: usize = 4;
/// Payload of the UDP sender, in bytes.
const PAYLOAD: usize = 64;
/// Time after which a lost answer fails the measurement.
const LOST: Duration = Duration::from_secs(5);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One byte there and one back, over connections that stay.
    TcpRr,
    /// The same over a connection of its own each time.
    Crr,
    /// One datagram there and one back.
    UdpRr,
    /// Datagrams as fast as they go, one way.
    UdpRate,
    /// Bytes as fast as they go, one way.
    Stream,
}

/// What came out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// Transactions, packets or bytes a second.
    pub(crate) per_second: f64,
    /// The sending thread's processor time for each, in microseconds.
    pub(crate) cpu_us: f64,
}

/// Servers in a namespace, until the process ends.
pub(crate) struct Server {
    received: Arc<AtomicU64>,
}

impl Server {
    /// Starts them.
    pub(crate) async fn start(namespace: &Namespace) -> Result<Self> {
        let received = Arc::new(AtomicU64::new(0));
        let count = received.clone();
        namespace.run(move || serve(&count)).await??;
        Ok(Self { received })
    }
}

fn any(port: u16) -> SocketAddr {
    (std::net::Ipv6Addr::UNSPECIFIED, port).into()
}

/// Keeps this thread, and those that it starts, on one processor where there is that one.
fn stay(processor: usize) {
    let mut set = nix::sched::CpuSet::new();
    let this = nix::unistd::Pid::from_raw(0);
    let _ = set.set(processor).and_then(|()| nix::sched::sched_setaffinity(this, &set));
}

fn serve(received: &Arc<AtomicU64>) -> Result<()> {
    for (port, one) in [(ECHO, true), (ECHO_MANY, false)] {
        let listener = TcpListener::bind(any(port))?;
        std::thread::spawn(move || {
            if one {
                stay(HERE);
            }
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || echo(stream));
            }
        });
    }
    let mut acceptors = vec![(TcpListener::bind(any(CONNECT))?, true)];
    let many = TcpListener::bind(any(CONNECT_MANY))?;
    for _ in 0..ACCEPTORS {
        acceptors.push((many.try_clone()?, false));
    }
    for (listener, one) in acceptors {
        std::thread::spawn(move || {
            if one {
                stay(HERE);
            }
            for mut stream in listener.incoming().flatten() {
                let mut byte = [0];
                // Closed here first, so that the client's ports are free at once.
                if stream.read_exact(&mut byte).is_ok() {
                    let _ = stream.write_all(&byte);
                }
            }
        });
    }
    let socket = UdpSocket::bind(any(UDP_ECHO))?;
    std::thread::spawn(move || {
        stay(HERE);
        let mut buffer = [0; 2048];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    });
    let socket = UdpSocket::bind(any(UDP_SINK))?;
    let count = received.clone();
    std::thread::spawn(move || {
        stay(THERE);
        let mut buffer = [0; 2048];
        let mut known = None;
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            // One answer, or the flow stays new for ever to those who track connections.
            if known.replace(from) != Some(from) {
                let _ = socket.send_to(&buffer[..n], from);
            }
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let listener = TcpListener::bind(any(STREAM))?;
    let count = received.clone();
    std::thread::spawn(move || {
        stay(THERE);
        let mut buffer = vec![0; 1 << 18];
        for mut stream in listener.incoming().flatten() {
            while let Ok(n @ 1..) = stream.read(&mut buffer) {
                count.fetch_add(n as u64, Ordering::Relaxed);
            }
        }
    });
    Ok(())
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
}

/// Processor time of this thread.
fn processor() -> Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(Duration::new(time.tv_sec().unsigned_abs(), u32::try_from(time.tv_nsec())?))
}

/// Runs `connections` clients in `client` for `time`.
pub(crate) async fn measure(
    kind: Kind,
    connections: usize,
    time: Duration,
    client: &Namespace,
    to: IpAddr,
    server: &Server,
) -> Result<Rate> {
    let received = server.received.clone();
    client
        .run(move || {
            let begin = Instant::now();
            let end = begin + time;
            let before = received.load(Ordering::Relaxed);
            let threads: Vec<_> = (0..connections)
                .map(|_| {
                    std::thread::spawn(move || {
                        let many = connections > 1;
                        if !many {
                            stay(HERE);
                        }
                        let start = processor()?;
                        let count = work(kind, many, to, end)?;
                        anyhow::Ok((count, processor()? - start))
                    })
                })
                .collect();
            let (mut sent, mut cpu) = (0, Duration::ZERO);
            for thread in threads {
                let (count, time) = thread.join().map_err(|_| anyhow::anyhow!("a client died"))??;
                sent += count;
                cpu += time;
            }
            let took = begin.elapsed().as_secs_f64();
            let arrived = match kind {
                Kind::UdpRate | Kind::Stream => received.load(Ordering::Relaxed) - before,
                _ => sent,
            };
            ensure!(arrived > 0 && sent > 0, "{kind:?}: nothing arrived");
            Ok(Rate { per_second: arrived as f64 / took, cpu_us: cpu.as_secs_f64() * 1e6 / sent as f64 })
        })
        .await?
}

fn work(kind: Kind, many: bool, to: IpAddr, end: Instant) -> Result<u64> {
    let mut count = 0;
    let connect = |port| -> Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&(to, port).into(), LOST)
            .with_context(|| format!("cannot connect to {to}"))?;
        stream.set_read_timeout(Some(LOST))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    let datagrams = |port| -> Result<UdpSocket> {
        let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((to, port))?;
        socket.set_read_timeout(Some(LOST))?;
        Ok(socket)
    };
    let mut byte = [7];
    match kind {
        Kind::TcpRr => {
            let mut stream = connect(if many { ECHO_MANY } else { ECHO })?;
            while Instant::now() < end {
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte).context("no answer")?;
                count += 1;
            }
        }
        Kind::Crr => {
            while Instant::now() < end {
                let mut stream = connect(if many { CONNECT_MANY } else { CONNECT })?;
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte).context("no answer")?;
                ensure!(stream.read(&mut byte)? == 0, "more than asked for");
                count += 1;
            }
        }
        Kind::UdpRr => {
            let socket = datagrams(UDP_ECHO)?;
            while Instant::now() < end {
                socket.send(&byte)?;
                socket.recv(&mut byte).context("no answer")?;
                count += 1;
            }
        }
        Kind::UdpRate => {
            let socket = datagrams(UDP_SINK)?;
            let payload = [0; PAYLOAD];
            while Instant::now() < end {
                for _ in 0..32 {
                    match socket.send(&payload) {
                        Ok(_) => count += 1,
                        // A full queue is part of what is measured.
                        Err(e)
                            if e.kind() == ErrorKind::WouldBlock
                                || e.raw_os_error() == Some(libc::ENOBUFS) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
            }
        }
        Kind::Stream => {
            let mut stream = connect(STREAM)?;
            let payload = vec![0; 1 << 17];
            while Instant::now() < end {
                stream.write_all(&payload)?;
                count += payload.len() as u64;
            }
        }
    }
    Ok(count)
}
