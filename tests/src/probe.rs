//! Real listeners and real connections.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use crate::namespace::Namespace;

/// A TCP server: tells each client its own name and the client's address, then sends back what it gets.
#[derive(Debug)]
pub struct Listener {
    task: JoinHandle<()>,
}

impl Listener {
    /// Listens on all addresses of a namespace, in both families.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn open(namespace: &Namespace, name: &str, port: u16) -> Result<Self> {
        let listener = namespace
            .run(move || {
                let listener = std::net::TcpListener::bind(("::", port))?;
                listener.set_nonblocking(true)?;
                std::io::Result::Ok(listener)
            })
            .await?
            .with_context(|| format!("{}: cannot listen on port {port}", namespace.name()))?;
        let listener = TcpListener::from_std(listener)?;
        let name = name.to_owned();
        Ok(Self {
            task: tokio::spawn(async move {
                // Accepting fails only for a connection that is gone already, or with the listener.
                while let Ok((stream, client)) = listener.accept().await {
                    tokio::spawn(serve(stream, client, name.clone()));
                }
            }),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves one client until either end closes.
async fn serve(mut stream: TcpStream, client: SocketAddr, name: String) -> std::io::Result<()> {
    stream.write_all(format!("{name} {}\n", client.ip().to_canonical()).as_bytes()).await?;
    let (mut reader, mut writer) = stream.split();
    tokio::io::copy(&mut reader, &mut writer).await.map(drop)
}

/// An open connection to a [`Listener`].
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    /// Name that the server told.
    pub server: String,
    /// This side's address as the server sees it.
    pub seen_as: IpAddr,
}

impl Connection {
    /// Sends a line and waits for it to come back.
    ///
    /// # Errors
    /// When the connection is reset or closed. Silence is `Ok(false)`.
    pub async fn echoes(&mut self, limit: Duration) -> Result<bool> {
        let exchange = async {
            self.stream.write_all(b"ping\n").await?;
            let mut answer = [0; 5];
            self.stream.read_exact(&mut answer).await?;
            anyhow::ensure!(&answer == b"ping\n", "came back as {answer:?}");
            Ok(true)
        };
        tokio::time::timeout(limit, exchange).await.unwrap_or(Ok(false))
    }
}

/// What became of an attempt to connect.
#[derive(Debug)]
pub enum Outcome {
    /// The server answered.
    Open(Connection),
    /// Nothing came back: what a policy does to what it denies.
    Silent,
    /// Anything else: a policy does neither refuse nor break a connection.
    Fault(String),
}

impl Outcome {
    /// Whether the server answered.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    /// Whether nothing came back.
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::Silent)
    }
}

/// Connects from a namespace.
///
/// # Errors
/// When not even a socket can be had; all else is an [`Outcome`].
pub async fn connect(from: &Namespace, to: SocketAddr, limit: Duration) -> Result<Outcome> {
    connect_as(from, None, to, limit).await
}

/// Connects from a namespace, from one of its addresses.
///
/// # Errors
/// When not even a socket with that address can be had; all else is an [`Outcome`].
pub async fn connect_as(
    from: &Namespace,
    source: Option<IpAddr>,
    to: SocketAddr,
    limit: Duration,
) -> Result<Outcome> {
    // A socket belongs to the namespace of the thread that makes it, whoever uses it.
    let socket = from
        .run(move || {
            let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            if let Some(source) = source {
                socket.bind(SocketAddr::new(source, 0))?;
            }
            std::io::Result::Ok(socket)
        })
        .await?
        .with_context(|| format!("{}: no socket from {source:?}", from.name()))?;
    let greet = async {
        let mut stream = BufReader::new(socket.connect(to).await?);
        let mut greeting = String::new();
        stream.read_line(&mut greeting).await?;
        let (server, seen_as) = greeting.trim_end().rsplit_once(' ').context("no greeting")?;
        let seen_as = seen_as.parse().with_context(|| format!("greeting {greeting:?}"))?;
        anyhow::Ok(Connection { server: server.to_owned(), seen_as, stream })
    };
    Ok(match tokio::time::timeout(limit, greet).await {
        Ok(Ok(connection)) => Outcome::Open(connection),
        Ok(Err(error)) => Outcome::Fault(format!("{error:#}")),
        Err(_) => Outcome::Silent,
    })
}
