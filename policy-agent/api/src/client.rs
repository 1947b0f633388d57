//! A blocking client of the agent's HTTP interface, for the plugin, the CLI and tests.
//!
//! One connection to a request, plain system calls and no runtime: a caller makes one or two requests in
//! its life, and the plugin's whole life is three milliseconds.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::ApiError;

mod http;

/// Time for one request unless set otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer that is read, in bytes.
const LONGEST_ANSWER: usize = 64 << 20;

/// A client of one agent.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
}

/// Why a request brought no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: the agent is not there.
    #[error("no agent at {}: {source}", socket.display())]
    Connect {
        /// The socket's path.
        socket: PathBuf,
        /// What `connect` said.
        source: io::Error,
    },
    /// The agent did not answer in time.
    #[error("the agent did not answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The agent answered with an error.
    #[error("{0}")]
    Answer(ApiError),
    /// An answer that is not the interface's.
    #[error("the agent answered with status {status} and without a reason")]
    Status {
        /// HTTP status code.
        status: u16,
    },
    /// The request or the answer is not what the types say.
    #[error("JSON of {path}: {source}")]
    Json {
        /// The request's path.
        path: String,
        /// Where it does not fit.
        source: serde_json::Error,
    },
    /// The connection broke, or what came is not HTTP.
    #[error("connection to the agent: {0}")]
    Http(String),
}

impl ClientError {
    /// Whether the agent itself is out of reach: nobody listens, it is stuck, or it broke off.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Timeout(_) | Self::Http(_))
    }
}

/// `/v1/endpoints/{containerID}/{ifname}`, with what a path cannot hold as it is percent-encoded.
pub fn endpoint_path(container_id: &str, ifname: &str) -> String {
    let mut path = String::from("/v1/endpoints/");
    for (i, part) in [container_id, ifname].into_iter().enumerate() {
        if i > 0 {
            path.push('/');
        }
        for byte in part.bytes() {
            if byte.is_ascii_alphanumeric() || b"-_~".contains(&byte) || (byte == b'.' && part.len() > 2) {
                path.push(char::from(byte));
            } else {
                path.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    path
}

impl Client {
    /// A client of the agent that listens at `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), timeout: TIMEOUT }
    }

    /// The same, giving up on a request after `timeout`.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The agent's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Connects, so that nothing but the agent's own time is spent later on.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect(&self) -> Result<Connection, ClientError> {
        let connected = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            // Of a stuck agent the queue of connections may be full.
            socket.set_write_timeout(Some(self.timeout))?;
            socket.connect(&SockAddr::unix(&self.socket)?)?;
            Ok(UnixStream::from(OwnedFd::from(socket)))
        };
        match connected() {
            Ok(stream) => Ok(Connection { stream, timeout: self.timeout }),
            Err(source) => Err(ClientError::Connect { socket: self.socket.clone(), source }),
        }
    }

    /// `GET path`. Where an answer has no body, ask for `()`.
    ///
    /// # Errors
    /// Anything but a success is a [`ClientError`].
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.connect()?.ask("GET", path, &[])?.answer()
    }

    /// `PUT path` with a JSON body.
    ///
    /// # Errors
    /// Anything but a success is a [`ClientError`].
    pub fn put<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, ClientError> {
        self.connect()?.put(path, body)?.answer()
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// Anything but a success is a [`ClientError`].
    pub fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, ClientError> {
        self.connect()?.ask("POST", path, &json(path, body)?)?.answer()
    }

    /// `DELETE path`.
    ///
    /// # Errors
    /// Anything but a success is a [`ClientError`].
    pub fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.connect()?.ask("DELETE", path, &[])?.answer()
    }

    /// `GET path`, whose answer is lines: each is given to `line` as it comes, until the answer ends or
    /// `line` says `false`. The timeout is for the answer's head; lines may take their time.
    ///
    /// # Errors
    /// Anything but a success is a [`ClientError`].
    pub fn lines(&self, path: &str, mut line: impl FnMut(&[u8]) -> bool) -> Result<(), ClientError> {
        let asked = self.connect()?.ask("GET", path, &[])?;
        let timeout = asked.stream.timeout;
        let http = |e| failure(&e, timeout);
        let mut answer = http::Answer::read(asked.stream).map_err(http)?;
        if !success(answer.status) {
            return Err(refusal(answer.status, &answer.whole(LONGEST_ANSWER).map_err(http)?));
        }
        answer.from.at = None;
        answer.from.stream.set_read_timeout(None).map_err(http)?;
        let mut rest = Vec::new();
        while let Some(bytes) = answer.next().map_err(http)? {
            rest.extend_from_slice(&bytes);
            let mut start = 0;
            while let Some(end) = rest[start..].iter().position(|&b| b == b'\n') {
                if !line(&rest[start..start + end]) {
                    return Ok(());
                }
                start += end + 1;
            }
            rest.drain(..start);
            if rest.len() > LONGEST_ANSWER {
                return Err(ClientError::Http(format!("{path}: a line without an end")));
            }
        }
        Ok(())
    }
}

/// An open connection to the agent, for one request.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    timeout: Duration,
}

/// A request that was sent, and whose answer can be waited for.
#[derive(Debug)]
pub struct Asked {
    stream: Deadline,
    path: String,
}

/// A stream that can be read until a point in time.
#[derive(Debug)]
struct Deadline {
    stream: UnixStream,
    timeout: Duration,
    /// `None` once the answer may take its time.
    at: Option<Instant>,
}

impl Connection {
    /// The same, giving up on the request after `timeout`.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Sends `PUT path` with a JSON body.
    ///
    /// # Errors
    /// Where it cannot be sent.
    pub fn put<B: Serialize>(self, path: &str, body: &B) -> Result<Asked, ClientError> {
        let body = json(path, body)?;
        self.ask("PUT", path, &body)
    }

    fn ask(self, method: &str, path: &str, body: &[u8]) -> Result<Asked, ClientError> {
        let (mut stream, timeout) = (self.stream, self.timeout);
        let at = Instant::now() + timeout;
        let mut send = || {
            stream.set_write_timeout(Some(timeout))?;
            io::Write::write_all(&mut stream, &http::request(method, path, body))
        };
        send().map_err(|e| failure(&e, timeout))?;
        Ok(Asked { stream: Deadline { stream, timeout, at: Some(at) }, path: path.to_owned() })
    }
}

impl Asked {
    /// Waits for the answer.
    ///
    /// # Errors
    /// Anything but a success is a [`ClientError`].
    pub fn answer<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let timeout = self.stream.timeout;
        let read = || {
            let answer = http::Answer::read(self.stream)?;
            Ok((answer.status, answer.whole(LONGEST_ANSWER)?))
        };
        let (status, body) = read().map_err(|e| failure(&e, timeout))?;
        if !success(status) {
            return Err(refusal(status, &body));
        }
        let body = if body.is_empty() { b"null".as_slice() } else { &body };
        serde_json::from_slice(body).map_err(|source| ClientError::Json { path: self.path, source })
    }
}

impl io::Read for Deadline {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Some(at) = self.at {
            // What is there is read even then: who asked had other things to do meanwhile.
            let left = at.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left))?;
        }
        self.stream.read(into)
    }
}

fn json<B: Serialize>(path: &str, body: &B) -> Result<Vec<u8>, ClientError> {
    serde_json::to_vec(body).map_err(|source| ClientError::Json { path: path.to_owned(), source })
}

fn success(status: u16) -> bool {
    (200..300).contains(&status)
}

fn failure(e: &io::Error, timeout: Duration) -> ClientError {
    match e.kind() {
        // What a socket says whose time is over.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Timeout(timeout),
        _ => ClientError::Http(e.to_string()),
    }
}

fn refusal(status: u16, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<ApiError>(body) {
        Ok(error) => ClientError::Answer(error),
        Err(_) => ClientError::Status { status },
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::ErrorCode;

    /// Answers one request with `answer`, and hands back what was asked.
    fn serve(answer: &'static str) -> (tempfile::TempDir, Client, std::thread::JoinHandle<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let n = stream.read(&mut buffer).unwrap();
                request.extend_from_slice(&buffer[..n]);
                let text = String::from_utf8_lossy(&request).into_owned();
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length = head
                        .lines()
                        .find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
                        .unwrap_or(0);
                    if body.len() >= length {
                        stream.write_all(answer.as_bytes()).unwrap();
                        return text;
                    }
                }
            }
        });
        (dir, Client::new(path), thread)
    }

    #[test]
    fn put_sends_the_body_and_reads_the_answer() {
        let (_dir, client, server) = serve("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n[1,2,3]");
        let answer: Vec<u32> = client.put("/v1/x", &"hello").unwrap();
        assert_eq!(answer, [1, 2, 3]);
        let asked = server.join().unwrap();
        assert!(asked.starts_with("PUT /v1/x HTTP/1.1\r\n"), "{asked}");
        assert!(asked.ends_with("\r\n\r\n\"hello\""), "{asked}");
    }

    #[test]
    fn an_error_of_the_agent_keeps_its_code() {
        let (_dir, client, server) = serve(
            "HTTP/1.1 409 Conflict\r\ncontent-length: 40\r\n\r\n{\"code\":\"slot-taken\",\"message\":\"slot 7\"} ",
        );
        let error = client.put::<_, ()>("/v1/x", &1).unwrap_err();
        assert!(!error.is_away());
        let ClientError::Answer(error) = error else { panic!("{error:?}") };
        assert_eq!((error.code, error.message.as_str()), (ErrorCode::SlotTaken, "slot 7"));
        server.join().unwrap();
    }

    #[test]
    fn no_content_is_a_success() {
        let (_dir, client, server) = serve("HTTP/1.1 204 No Content\r\n\r\n");
        client.delete(&endpoint_path("c1", "eth0")).unwrap();
        assert!(server.join().unwrap().starts_with("DELETE /v1/endpoints/c1/eth0 HTTP/1.1\r\n"));
    }

    #[test]
    fn lines_come_whole_however_the_answer_is_cut() {
        let (_dir, client, server) = serve(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\na\nb\r\n3\r\nc\nd\r\n1\r\n\n\r\n0\r\n\r\n",
        );
        let mut lines = Vec::new();
        client
            .lines("/v1/x", |line| {
                lines.push(String::from_utf8(line.to_vec()).unwrap());
                true
            })
            .unwrap();
        assert_eq!(lines, ["a", "bc", "d"]);
        server.join().unwrap();
        let (_dir, client, server) = serve("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        let error = client.lines("/v1/x", |_| true).unwrap_err();
        assert!(matches!(error, ClientError::Status { status: 400 }), "{error:?}");
        server.join().unwrap();
    }

    #[test]
    fn nobody_there_and_a_stuck_agent_are_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let error = Client::new(&path).get::<()>("/v1/ready").unwrap_err();
        assert!(matches!(error, ClientError::Connect { .. }) && error.is_away(), "{error:?}");
        let _listener = UnixListener::bind(&path).unwrap();
        let client = Client::new(&path).with_timeout(Duration::from_millis(50));
        let error = client.get::<()>("/v1/ready").unwrap_err();
        assert!(matches!(error, ClientError::Timeout(_)) && error.is_away(), "{error:?}");
    }

    #[test]
    fn an_answer_that_has_come_counts_however_late_it_is_read() {
        let (_dir, client, server) = serve("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n7");
        let client = client.with_timeout(Duration::from_micros(1));
        let asked = client.connect().unwrap().put("/v1/x", &1).unwrap();
        server.join().unwrap();
        assert_eq!(asked.answer::<u32>().unwrap(), 7);
    }

    #[test]
    fn odd_interface_names_fit_into_a_path() {
        assert_eq!(endpoint_path("c.1_x-", "a?b#%é"), "/v1/endpoints/c.1_x-/a%3Fb%23%25%C3%A9");
        assert_eq!(endpoint_path("..", "."), "/v1/endpoints/%2E%2E/%2E");
    }
}
