//! Ctrl-C.

use std::future::Future;

use anyhow::{Result, bail};
use tokio::signal::unix::{SignalKind, signal};

/// Waits for Ctrl-C or SIGTERM.
///
/// # Errors
/// When signals cannot be waited for.
pub async fn interrupted() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => Ok(result?),
        _ = terminate.recv() => Ok(()),
    }
}

/// Does `work` until it is done, or until Ctrl-C or SIGTERM: then what it had made is dropped with it.
///
/// # Errors
/// Those of `work`, and being interrupted.
pub async fn unless_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done,
        signal = interrupted() => {
            signal?;
            bail!("interrupted")
        }
    }
}
