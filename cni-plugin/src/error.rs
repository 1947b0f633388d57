//! The error object of the specification (section 5, "Error").

use serde_json::{Value, json};

/// Error codes, see the [crate]'s table.
#[expect(missing_docs, reason = "the crate's table says what each means")]
pub mod code {
    pub const VERSION: u32 = 1;
    pub const ENVIRONMENT: u32 = 4;
    pub const IO: u32 = 5;
    pub const DECODE: u32 = 6;
    pub const CONFIGURATION: u32 = 7;
    pub const TRY_AGAIN: u32 = 11;
    pub const NOT_AVAILABLE: u32 = 50;
    pub const LIMITED: u32 = 51;
    pub const EXHAUSTED: u32 = 100;
    pub const EXISTS: u32 = 101;
    pub const NETNS: u32 = 102;
    pub const ADDRESS_IN_USE: u32 = 103;
    pub const KERNEL: u32 = 104;
    pub const DIFFERS: u32 = 105;
    pub const REFUSED: u32 = 106;
    pub const NO_SLOT: u32 = 107;
    pub const INCOMPLETE: u32 = 108;
    pub const DELEGATE: u32 = 109;
}

/// What the plugin answers when it cannot do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}")]
pub struct CniError {
    /// See [`code`].
    pub code: u32,
    /// What went wrong, naming the object and the field.
    pub msg: String,
    /// More, or empty.
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The same with details.
    #[must_use]
    pub fn details(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }

    /// An invalid network configuration.
    pub fn configuration(msg: impl Into<String>) -> Self {
        Self::new(code::CONFIGURATION, msg)
    }

    /// The error object.
    pub fn to_json(&self, cni_version: &str) -> Value {
        let mut object = json!({ "cniVersion": cni_version, "code": self.code, "msg": self.msg });
        if !self.details.is_empty()
            && let Some(object) = object.as_object_mut()
        {
            object.insert("details".to_owned(), self.details.clone().into());
        }
        object
    }
}

/// Adds to an I/O error what was being done, as [`code::IO`].
pub trait IoContext<T> {
    /// `context` names the file.
    ///
    /// # Errors
    /// The same, told.
    fn context(self, context: impl FnOnce() -> String) -> Result<T, CniError>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T, CniError> {
        self.map_err(|e| CniError::new(code::IO, format!("{}: {e}", context())))
    }
}
