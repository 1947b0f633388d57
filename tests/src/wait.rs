//! Waiting for a condition.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Time between two looks at a condition.
const POLL: Duration = Duration::from_millis(5);

/// Waits until `condition` holds.
///
/// # Errors
/// When it does not hold within `limit`, naming `what`; or with the condition's own error.
pub async fn await_until(
    what: &str,
    limit: Duration,
    mut condition: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    while !condition().await? {
        if start.elapsed() > limit {
            bail!("not within {limit:?}: {what}");
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
