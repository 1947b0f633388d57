//! The syntax of names, label keys and label values (`apimachinery/pkg/util/validation`).

fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|part| {
            let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            !part.is_empty() && part.bytes().all(inner) && !part.starts_with('-') && !part.ends_with('-')
        })
}

fn is_qualified_part(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let outer = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(inner)
        && outer(text.bytes().next())
        && outer(text.bytes().next_back())
}

/// Name of an object, "a lowercase RFC 1123 subdomain".
pub(super) fn check_name(text: &str) -> Result<(), String> {
    if is_dns_subdomain(text) {
        Ok(())
    } else {
        Err(format!(
            "{text:?} is not a name: up to 253 lowercase letters, digits, '-' and '.', starting and ending \
             with a letter or digit"
        ))
    }
}

/// Name of a namespace, "a lowercase RFC 1123 label".
pub(super) fn check_namespace(text: &str) -> Result<(), String> {
    if is_dns_label(text) {
        Ok(())
    } else {
        Err(format!(
            "{text:?} is not a namespace: up to 63 lowercase letters, digits and '-', starting and ending \
             with a letter or digit"
        ))
    }
}

/// Label key: "(prefix/)name".
pub(super) fn check_label_key(text: &str) -> Result<(), String> {
    let good = match text.split_once('/') {
        None => is_qualified_part(text),
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_qualified_part(name),
    };
    if good {
        Ok(())
    } else {
        Err(format!(
            "{text:?} is not a label key: an optional DNS prefix and '/', then up to 63 letters, digits, \
             '-', '_' and '.', starting and ending with a letter or digit"
        ))
    }
}

/// Label value.
pub(super) fn check_label_value(text: &str) -> Result<(), String> {
    if text.is_empty() || is_qualified_part(text) {
        Ok(())
    } else {
        Err(format!(
            "{text:?} is not a label value: up to 63 letters, digits, '-', '_' and '.', starting and ending \
             with a letter or digit"
        ))
    }
}

/// Port name (`IANA_SVC_NAME`).
pub(super) fn check_port_name(text: &str) -> Result<(), String> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let good = (1..=15).contains(&text.len())
        && text.bytes().all(inner)
        && text.bytes().any(|b| b.is_ascii_lowercase())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.contains("--");
    if good {
        Ok(())
    } else {
        Err(format!(
            "{text:?} is not a port name: up to 15 lowercase letters, digits and single '-' within, at \
             least one letter"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_api_server_has_them() {
        let long = "a".repeat(63);
        let too_long = "a".repeat(64);
        for key in ["app", "a/b", "app.kubernetes.io/name", "A_b.c-D", "1", &long, "x.y/A"] {
            assert!(check_label_key(key).is_ok(), "{key}");
        }
        for key in ["", "/", "a/", "/b", "a/b/c", "-a", "a-", "a b", "A/b", "ä", &too_long] {
            assert!(check_label_key(key).is_err(), "{key}");
        }
        for value in ["", "a", "A.b_c-1", &long] {
            assert!(check_label_value(value).is_ok(), "{value}");
        }
        for value in ["-", "a/b", " ", "a ", &too_long] {
            assert!(check_label_value(value).is_err(), "{value}");
        }
        for name in ["http", "a-1", "1a", "metrics-port-15"] {
            assert!(check_port_name(name).is_ok(), "{name}");
        }
        for name in ["", "80", "a--b", "-a", "a-", "Http", "metrics-port-156"] {
            assert!(check_port_name(name).is_err(), "{name}");
        }
        assert!(check_name("a.b-c").is_ok() && check_name("a..b").is_err() && check_name("").is_err());
        assert!(check_namespace("a-b").is_ok() && check_namespace("a.b").is_err());
    }
}
