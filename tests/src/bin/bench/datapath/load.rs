//! Load between two namespaces.
//!
//! Own generators, because no packaged tool opens a connection for each request (netperf's TCP_CRR), and
//! so that all kinds are counted the same way.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_tests::namespace::Namespace;
use fairlead_tests::wait::await_until;
use nix::time::{ClockId, clock_gettime};

/// Ports of the servers.
pub(crate) const PORTS: std::ops::RangeInclusive<u16> = 7000..=7007;
const ECHO: u16 = 7000;
const CONNECT: u16 = 7001;
const UDP_ECHO: u16 = 7002;
const UDP_SINK: u16 = 7003;
const STREAM: u16 = 7004;
/// As [`ECHO`], [`CONNECT`] and [`UDP_ECHO`], for many connections.
const ECHO_MANY: u16 = 7005;
const CONNECT_MANY: u16 = 7006;
const UDP_ECHO_MANY: u16 = 7007;
/// Where both ends of a conversation run, which makes the scheduler no part of what is measured.
pub(crate) const HERE: usize = 0;
/// Where one receives what is sent from [`HERE`].
const THERE: usize = 1;
/// Threads that serve what many clients ask for in turn.
const SERVERS: usize = 4;
/// Payload of the UDP sender, in bytes; the first asks for an answer, or does not.
pub(crate) const PAYLOAD: usize = 64;
const ANSWER: u8 = 1;
/// Sent between two looks at the clock.
pub(crate) const BURST: usize = 32;
/// Time after which a lost answer fails the measurement.
const LOST: Duration = Duration::from_secs(5);
/// For how long one of several attempts is given.
const SHORT: Duration = Duration::from_millis(100);
/// What else runs on the machine shall not get between.
const NICE: i32 = -20;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One byte there and one back, over connections that stay.
    TcpRr,
    /// The same over a connection of its own each time.
    Crr,
    /// One datagram there and one back.
    UdpRr,
    /// Datagrams as fast as they go, one way, over this many flows in turn.
    UdpRate(usize),
    /// Bytes as fast as they go, one way.
    Stream,
}

/// What came out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// Transactions, packets or bytes a second.
    pub(crate) per_second: f64,
    /// The sending threads' processor time for each, in microseconds.
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

/// Starts a thread that measures or is measured, and those that it starts: before all others, and on one
/// processor where there is that one.
pub(crate) fn thread(
    processor: Option<usize>,
    work: impl FnOnce() -> Result<(u64, Duration, Duration)> + Send + 'static,
) -> std::thread::JoinHandle<Result<(u64, Duration, Duration)>> {
    std::thread::spawn(move || {
        // SAFETY: two numbers; no memory is passed. Of a thread, because Linux knows priorities of those.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
        if let Some(processor) = processor {
            let mut set = nix::sched::CpuSet::new();
            let this = nix::unistd::Pid::from_raw(0);
            let _ = set.set(processor).and_then(|()| nix::sched::sched_setaffinity(this, &set));
        }
        work()
    })
}

/// A thread that serves for ever.
fn served(processor: Option<usize>, mut serve: impl FnMut() + Send + 'static) {
    thread(processor, move || {
        serve();
        Ok((0, Duration::ZERO, Duration::ZERO))
    });
}

fn serve(received: &Arc<AtomicU64>) -> Result<()> {
    for (port, processor) in [(ECHO, Some(HERE)), (ECHO_MANY, None)] {
        let listener = TcpListener::bind(any(port))?;
        served(processor, move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || echo(stream));
            }
        });
    }
    for (port, processor, threads) in [(CONNECT, Some(HERE), 1), (CONNECT_MANY, None, SERVERS)] {
        let listener = TcpListener::bind(any(port))?;
        for _ in 0..threads {
            let listener = listener.try_clone()?;
            served(processor, move || {
                for mut stream in listener.incoming().flatten() {
                    let mut byte = [0];
                    // Closed here first, so that the client's ports are free at once.
                    if stream.read_exact(&mut byte).is_ok() {
                        let _ = stream.write_all(&byte);
                    }
                }
            });
        }
    }
    for (port, processor, threads) in [(UDP_ECHO, Some(HERE), 1), (UDP_ECHO_MANY, None, SERVERS)] {
        let socket = UdpSocket::bind(any(port))?;
        for _ in 0..threads {
            let socket = socket.try_clone()?;
            served(processor, move || {
                let mut buffer = [0; 64];
                while let Ok((n, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..n], from);
                }
            });
        }
    }
    let socket = UdpSocket::bind(any(UDP_SINK))?;
    let count = received.clone();
    served(Some(THERE), move || {
        let mut buffer = [0; PAYLOAD];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            if buffer[0] == ANSWER {
                let _ = socket.send_to(&buffer[..n], from);
            }
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let listener = TcpListener::bind(any(STREAM))?;
    let count = received.clone();
    served(Some(THERE), move || {
        for mut stream in listener.incoming().flatten() {
            let count = count.clone();
            std::thread::spawn(move || {
                let mut buffer = vec![0; 1 << 18];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    count.fetch_add(n as u64, Ordering::Relaxed);
                }
            });
        }
    });
    Ok(())
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
}

/// Waits until a server can be asked: what nodes know of each other's pods and ways they learn one after the other.
pub(crate) async fn await_answer(client: &Namespace, to: IpAddr) -> Result<()> {
    await_until("a server that answers", LOST, async || {
        client.run(move || Ok(TcpStream::connect_timeout(&(to, ECHO).into(), SHORT).is_ok())).await?
    })
    .await
}

/// Processor time of this thread.
pub(crate) fn processor() -> Result<Duration> {
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
            let many = connections > 1;
            let gate = Arc::new(Barrier::new(connections + 1));
            let threads: Vec<_> = (0..connections)
                .map(|_| {
                    let gate = gate.clone();
                    thread((!many).then_some(HERE), move || {
                        let work = prepare(kind, many, to);
                        // Also where it failed, or the others would wait for ever.
                        gate.wait();
                        let mut work = work?;
                        let (begin, cpu) = (Instant::now(), processor()?);
                        let mut count = 0;
                        while begin.elapsed() < time {
                            count += work()?;
                        }
                        Ok((count, begin.elapsed(), processor()? - cpu))
                    })
                })
                .collect();
            gate.wait();
            let (begin, before) = (Instant::now(), received.load(Ordering::Relaxed));
            let (mut sent, mut rate, mut cpu) = (0, 0.0, Duration::ZERO);
            for thread in threads {
                let (count, took, time) = thread.join().map_err(|_| anyhow::anyhow!("a client died"))??;
                sent += count;
                rate += count as f64 / took.as_secs_f64();
                cpu += time;
            }
            if matches!(kind, Kind::UdpRate(_) | Kind::Stream) {
                let arrived = received.load(Ordering::Relaxed) - before;
                rate = arrived as f64 / begin.elapsed().as_secs_f64();
            }
            ensure!(rate > 0.0 && sent > 0, "{kind:?}: nothing arrived");
            Ok(Rate { per_second: rate, cpu_us: cpu.as_secs_f64() * 1e6 / sent as f64 })
        })
        .await?
}

/// A step of work, which returns how much it has done.
type Work = Box<dyn FnMut() -> Result<u64>>;

/// Opens what stays open, and tells how to go on.
fn prepare(kind: Kind, many: bool, to: IpAddr) -> Result<Work> {
    let connect = move |port| -> Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&(to, port).into(), LOST)
            .with_context(|| format!("cannot connect to {to}"))?;
        stream.set_read_timeout(Some(LOST))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    let datagrams = move |port| -> Result<UdpSocket> {
        let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((to, port))?;
        socket.set_read_timeout(Some(LOST))?;
        Ok(socket)
    };
    let mut byte = [7];
    Ok(match kind {
        Kind::TcpRr => {
            let mut stream = connect(if many { ECHO_MANY } else { ECHO })?;
            Box::new(move || {
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte).context("no answer")?;
                Ok(1)
            })
        }
        Kind::Crr => Box::new(move || {
            let mut stream = connect(if many { CONNECT_MANY } else { CONNECT })?;
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte).context("no answer")?;
            ensure!(stream.read(&mut byte)? == 0, "more than asked for");
            Ok(1)
        }),
        Kind::UdpRr => {
            let socket = datagrams(if many { UDP_ECHO_MANY } else { UDP_ECHO })?;
            Box::new(move || {
                socket.send(&byte)?;
                socket.recv(&mut byte).context("no answer")?;
                Ok(1)
            })
        }
        Kind::UdpRate(flows) => {
            let sockets: Vec<UdpSocket> = (0..flows).map(|_| datagrams(UDP_SINK)).collect::<Result<_>>()?;
            // Each flow is answered once, or it stays new for ever to those who track connections.
            let mut payload = [ANSWER; PAYLOAD];
            for socket in &sockets {
                socket.send(&payload)?;
                socket.recv(&mut payload).context("no answer")?;
                payload[0] = ANSWER;
            }
            payload[0] = 0;
            let mut next = 0;
            Box::new(move || {
                let mut count = 0;
                for _ in 0..BURST {
                    next = if next + 1 < sockets.len() { next + 1 } else { 0 };
                    match sockets[next].send(&payload) {
                        Ok(_) => count += 1,
                        // A full queue is part of what is measured.
                        Err(e)
                            if e.kind() == ErrorKind::WouldBlock
                                || e.raw_os_error() == Some(libc::ENOBUFS) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
                Ok(count)
            })
        }
        Kind::Stream => {
            let mut stream = connect(STREAM)?;
            let payload = vec![0; 1 << 17];
            Box::new(move || {
                stream.write_all(&payload)?;
                Ok(payload.len() as u64)
            })
        }
    })
}
