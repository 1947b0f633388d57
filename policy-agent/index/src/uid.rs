//! UIDs in the room that they take: every node keeps one for each pod of the cluster.

use std::fmt::{self, Write as _};

/// A pod's UID. What is written as 16 bytes in hexadecimal, as API servers and the kubelet's hashes for
/// static pods are, is kept as 16 bytes; what is not, as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Uid {
    /// The source has none.
    #[default]
    None,
    /// Lower case, with hyphens: 8-4-4-4-12 digits.
    Hyphenated([u8; 16]),
    /// Lower case, 32 digits.
    Plain([u8; 16]),
    Other(Box<str>),
}

/// Bytes before which a hyphen stands.
const HYPHENS: [usize; 4] = [4, 6, 8, 10];

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        let bytes = || {
            let mut bytes = [0; 16];
            let mut digits = text.bytes().filter(|&b| b != b'-').map(digit);
            for byte in &mut bytes {
                *byte = digits.next()?? << 4 | digits.next()??;
            }
            digits.next().is_none().then_some(bytes)
        };
        // Only what comes out as it went in.
        let faithful = |uid: &Self| uid.to_string() == text;
        match (text.len(), bytes()) {
            (0, _) => Some(Self::None),
            (36, Some(bytes)) => Some(Self::Hyphenated(bytes)).filter(faithful),
            (32, Some(bytes)) => Some(Self::Plain(bytes)).filter(faithful),
            _ => None,
        }
        .unwrap_or_else(|| Self::Other(text.into()))
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, hyphens) = match self {
            Self::None => return Ok(()),
            Self::Other(text) => return f.write_str(text),
            Self::Hyphenated(bytes) => (bytes, &HYPHENS[..]),
            Self::Plain(bytes) => (bytes, &[][..]),
        };
        for (i, byte) in bytes.iter().enumerate() {
            if hyphens.contains(&i) {
                f.write_char('-')?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_goes_in_comes_out() {
        let hyphenated = "0f8fad5b-d9cb-469f-a165-70867728950e";
        let plain = "0f8fad5bd9cb469fa16570867728950e";
        for (text, kept) in [
            ("", true),
            (hyphenated, true),
            (plain, true),
            ("0F8FAD5B-d9cb-469f-a165-70867728950e", false),
            ("0f8fad5bd-9cb-469f-a165-70867728950e", false),
            ("0f8fad5b-d9cb-469f-a165-70867728950", false),
            ("0f8fad5b-d9cb-469f-a165-70867728950ee", false),
            ("0f8fad5bd9cb469fa16570867728950g", false),
            ("----0f8fad5bd9cb469fa16570867728950e", false),
            ("0f8fad5bd9cb469fa16570867728----", false),
            ("u", false),
            ("ü", false),
        ] {
            let uid = Uid::from(text);
            assert_eq!(uid.to_string(), text);
            assert_eq!(!matches!(uid, Uid::Other(_)), kept, "{text}");
        }
        assert_ne!(Uid::from(hyphenated), Uid::from(plain));
    }
}
