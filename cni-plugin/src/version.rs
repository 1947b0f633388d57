//! Versions of the CNI specification that the plugin speaks.

use std::fmt;

use crate::error::{CniError, code};

/// A version that the plugin speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CniVersion {
    /// 0.3.1
    V031,
    /// 0.4.0: CHECK.
    V040,
    /// 1.0.0: `ips[].version` gone.
    V100,
    /// 1.1.0: GC, STATUS; `mtu`, `socketPath`, `pciID` of interfaces; more of routes.
    V110,
}

impl CniVersion {
    /// All of them, oldest first.
    pub const ALL: [Self; 4] = [Self::V031, Self::V040, Self::V100, Self::V110];
    /// The newest.
    pub const NEWEST: Self = Self::V110;

    /// As it stands in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V031 => "0.3.1",
            Self::V040 => "0.4.0",
            Self::V100 => "1.0.0",
            Self::V110 => "1.1.0",
        }
    }

    /// Reads a `cniVersion`. Its absence means 0.1.0, which the plugin does not speak.
    ///
    /// # Errors
    /// Code 1 with the versions that it does speak.
    pub fn parse(version: Option<&str>) -> Result<Self, CniError> {
        let version = version.unwrap_or("0.1.0");
        Self::ALL.into_iter().find(|v| v.as_str() == version).ok_or_else(|| {
            let spoken = Self::ALL.map(Self::as_str).join(", ");
            CniError::new(code::VERSION, format!("cniVersion {version:?} is not supported"))
                .details(format!("supported: {spoken}"))
        })
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
