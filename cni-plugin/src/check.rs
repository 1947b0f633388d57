//! CHECK.
use crate::config::Config;
use crate::environment::Environment;
use crate::error::CniError;

/// Checks.
///
/// # Errors
/// What differs.
pub fn check(_: &Environment, config: &Config) -> Result<(), CniError> {
    if config.prev_result.is_none() {
        return Err(CniError::configuration("prevResult is missing"));
    }
    Ok(())
}
