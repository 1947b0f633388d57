//! HTTP, as much as it takes to ask an agent.

use std::io::{Read, Write};

use anyhow::{Context, Result, bail};

/// `GET path`: status code and body.
///
/// # Errors
/// When the connection breaks or what comes is not HTTP.
pub fn get(mut connection: impl Read + Write, path: &str) -> Result<(u16, String)> {
    // HTTP/1.0: the answer ends where the connection does.
    write!(connection, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).context("cannot read the answer")?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("not HTTP: {answer:?}") };
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    Ok((status.with_context(|| format!("not HTTP: {head:?}"))?, body.to_owned()))
}
