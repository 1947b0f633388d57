//! HTTP/1.1 as far as one request and its answer over one connection: heads by `httparse`, bodies of a
//! given length, in chunks, or until the connection ends.

use std::io::{self, ErrorKind, Read};

/// Longest head of an answer, in bytes.
const LONGEST_HEAD: usize = 64 << 10;
/// Header lines that an answer may have.
const HEADERS: usize = 64;

/// A request as it goes over the wire.
pub(super) fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut bytes = format!(
        "{method} {path} HTTP/1.1\r\nhost: fairlead\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// What is still to come of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// So many bytes.
    Bytes(u64),
    /// Chunks; so many bytes of the one that has begun.
    Chunks(u64),
    /// Whatever comes until the connection ends.
    All,
}

/// An answer whose head has been read.
#[derive(Debug)]
pub(super) struct Answer<R> {
    pub(super) status: u16,
    pub(super) from: R,
    /// Read and not yet used: from `start` on.
    buffer: Vec<u8>,
    start: usize,
    rest: Rest,
}

fn broken(what: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.into())
}

impl<R: Read> Answer<R> {
    /// Reads the head of an answer.
    pub(super) fn read(mut from: R) -> io::Result<Self> {
        let mut buffer = Vec::new();
        loop {
            if more(&mut from, &mut buffer)? == 0 {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "it ended without an answer"));
            }
            let mut headers = [httparse::EMPTY_HEADER; HEADERS];
            let mut head = httparse::Response::new(&mut headers);
            match head.parse(&buffer).map_err(|e| broken(format!("no HTTP: {e}")))? {
                httparse::Status::Complete(start) => {
                    let status = head.code.ok_or_else(|| broken("no status"))?;
                    let rest = rest_after(status, head.headers)?;
                    return Ok(Self { status, from, start, rest, buffer });
                }
                httparse::Status::Partial if buffer.len() > LONGEST_HEAD => {
                    return Err(broken("a head without an end"));
                }
                httparse::Status::Partial => {}
            }
        }
    }

    /// The next piece of the body; `None` at its end.
    pub(super) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let there = self.buffer.len() - self.start;
            let piece = match &mut self.rest {
                Rest::Bytes(0) => return Ok(None),
                Rest::Chunks(0) => match self.chunk()? {
                    0 => return Ok(None),
                    length => {
                        self.rest = Rest::Chunks(length);
                        continue;
                    }
                },
                Rest::Bytes(left) | Rest::Chunks(left) => {
                    let piece = usize::try_from(*left).unwrap_or(usize::MAX).min(there);
                    *left -= piece as u64;
                    piece
                }
                Rest::All => there,
            };
            if piece > 0 {
                let taken = self.buffer[self.start..self.start + piece].to_vec();
                self.start += piece;
                if self.rest == Rest::Chunks(0) {
                    self.line_end()?;
                }
                return Ok(Some(taken));
            }
            if self.fill()? == 0 {
                return match self.rest {
                    Rest::All => Ok(None),
                    _ => Err(io::Error::new(ErrorKind::UnexpectedEof, "the answer was cut short")),
                };
            }
        }
    }

    /// The whole body, which must not be longer than `longest` bytes.
    pub(super) fn whole(mut self, longest: usize) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(piece) = self.next()? {
            body.extend(piece);
            if body.len() > longest {
                return Err(broken("the answer is too long"));
            }
        }
        Ok(body)
    }

    /// Length of the chunk that begins.
    fn chunk(&mut self) -> io::Result<u64> {
        loop {
            match httparse::parse_chunk_size(&self.buffer[self.start..]) {
                Ok(httparse::Status::Complete((size, length))) => {
                    self.start += size;
                    return Ok(length);
                }
                Ok(httparse::Status::Partial) => self.need()?,
                Err(_) => return Err(broken("a chunk without a size")),
            }
        }
    }

    /// What ends a chunk.
    fn line_end(&mut self) -> io::Result<()> {
        while self.buffer.len() - self.start < 2 {
            self.need()?;
        }
        if &self.buffer[self.start..self.start + 2] != b"\r\n" {
            return Err(broken("a chunk without an end"));
        }
        self.start += 2;
        Ok(())
    }

    fn need(&mut self) -> io::Result<()> {
        match self.fill()? {
            0 => Err(io::Error::new(ErrorKind::UnexpectedEof, "the answer was cut short")),
            _ => Ok(()),
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        self.buffer.drain(..self.start);
        self.start = 0;
        more(&mut self.from, &mut self.buffer)
    }
}

fn more(from: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let mut piece = [0; 4096];
    let length = loop {
        match from.read(&mut piece) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            length => break length?,
        }
    };
    buffer.extend_from_slice(&piece[..length]);
    Ok(length)
}

fn rest_after(status: u16, headers: &[httparse::Header<'_>]) -> io::Result<Rest> {
    // RFC 9112, section 6.3.
    if matches!(status, 100..200 | 204 | 304) {
        return Ok(Rest::Bytes(0));
    }
    let value = |name: &str| headers.iter().find(|h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value);
    if let Some(coding) = value("transfer-encoding") {
        let chunked = coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
        return if chunked { Ok(Rest::Chunks(0)) } else { Err(broken("an unknown transfer coding")) };
    }
    match value("content-length") {
        None => Ok(Rest::All),
        Some(text) => {
            let length = std::str::from_utf8(text).ok().and_then(|t| t.trim().parse().ok());
            length.map(Rest::Bytes).ok_or_else(|| broken("a content-length that is no number"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives what it has in pieces of so many bytes.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let length = self.0.len().min(self.1).min(into.len());
            into[..length].copy_from_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Ok(length)
        }
    }

    fn body(answer: &str, size: usize) -> io::Result<(u16, String)> {
        let answer = Answer::read(Pieces(answer.as_bytes(), size))?;
        let status = answer.status;
        Ok((status, String::from_utf8(answer.whole(100)?).unwrap()))
    }

    #[test]
    fn bodies_end_where_the_head_says_however_they_are_cut() {
        for size in 1..60 {
            let read = |answer: &str| body(answer, size).unwrap();
            assert_eq!(read("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"), (200, "hello".into()));
            assert_eq!(read("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhello"), (200, "he".into()));
            assert_eq!(read("HTTP/1.1 204 No Content\r\n\r\n"), (204, String::new()));
            assert_eq!(read("HTTP/1.1 404 \r\n\r\nall of it"), (404, "all of it".into()));
            let chunks =
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n";
            assert_eq!(read(chunks), (200, "hello".into()));
        }
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for answer in [
            "",
            "HTTP/1.1 200",
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell",
            "HTTP/1.1 200 OK\r\ncontent-length: five\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n",
        ] {
            assert!(body(answer, 7).is_err(), "{answer:?}");
        }
        let long = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(101));
        assert!(body(&long, 50).is_err());
        assert!(body(&format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(100_000)), 4096).is_err());
    }
}
