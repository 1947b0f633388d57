//! Text → documents.
//!
//! YAML is split at its document markers first, so that one document that cannot be parsed does not
//! take the others of its file with it. A key that stands twice in one mapping is an error: whichever
//! of the two were taken, the other's restriction would be lost.

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// One document of a file.
#[derive(Debug, PartialEq)]
pub(super) struct Document {
    /// Line at which it starts, from 1.
    pub(super) line: usize,
    /// Its value, or why it cannot be parsed.
    pub(super) value: Result<Value, String>,
}

/// The format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Any number of YAML documents.
    Yaml,
    /// Any number of JSON values.
    Json,
}

/// All documents that are not empty, each parsed when it is asked for.
pub(super) fn documents(text: &str, format: Format) -> Box<dyn Iterator<Item = Document> + '_> {
    match format {
        Format::Yaml => Box::new(yaml_parts(text).into_iter().flat_map(|(line, part)| yaml(line, part))),
        Format::Json => Box::new(json(text)),
    }
}

/// Splits at the lines that start a document: `---` at their beginning is a marker even within scalars
/// (YAML 1.2.2, rule 206, c-forbidden).
fn yaml_parts(text: &str) -> Vec<(usize, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parts = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 1, 0);
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && at > start {
            parts.push((start_line, &text[start..at]));
            (start, start_line) = (at, i + 1);
        }
        at += line.len();
    }
    parts.push((start_line, &text[start..]));
    // A part of nothing but comments and directives is none.
    parts.retain(|(_, part)| {
        part.lines().any(|line| {
            let line = line.trim();
            !(line.is_empty() || line.starts_with(['#', '%']) || line == "---" || line == "...")
        })
    });
    parts
}

fn yaml(first_line: usize, part: &str) -> Vec<Document> {
    let mut found = Vec::new();
    for deserializer in serde_yaml_ng::Deserializer::from_str(part) {
        let value = Strict.deserialize(deserializer).map_err(|e| match e.location() {
            Some(at) => {
                // The parser counts within the part.
                let message = e.to_string();
                let message = message.split(" at line ").next().unwrap_or_default();
                format!("{message} (line {}, column {})", first_line + at.line() - 1, at.column())
            }
            None => e.to_string(),
        });
        let failed = value.is_err();
        if !matches!(value, Ok(Value::Null)) {
            // The marker's own line is where people look.
            let line = first_line + part.lines().take_while(|l| blank(l)).count();
            found.push(Document { line, value });
        }
        if failed {
            break;
        }
    }
    found
}

fn blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#') || line == "---"
}

fn json(text: &str) -> impl Iterator<Item = Document> {
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut line = 1;
    std::iter::from_fn(move || {
        let trimmed = rest.trim_start();
        line += rest[..rest.len() - trimmed.len()].matches('\n').count();
        let mut stream = serde_json::Deserializer::from_str(trimmed).into_iter::<StrictValue>();
        match stream.next()? {
            Ok(value) => {
                let end = stream.byte_offset();
                let document = Document { line, value: Ok(value.0) };
                line += trimmed[..end].matches('\n').count();
                rest = &trimmed[end..];
                Some(document)
            }
            Err(e) => {
                let message = e.to_string();
                let message = message.split(" at line ").next().unwrap_or_default();
                let message =
                    format!("{message} (line {}, column {})", line + e.line().max(1) - 1, e.column());
                // Where the next one begins cannot be said.
                rest = "";
                Some(Document { line, value: Err(message) })
            }
        }
    })
}

/// A value without duplicate keys.
struct StrictValue(Value);

impl<'de> de::Deserialize<'de> for StrictValue {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Strict.deserialize(d).map(Self)
    }
}

/// Makes values without duplicate keys.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value that JSON has")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom(format!("{v} is no number in JSON")))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        Strict.deserialize(d)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        Strict.deserialize(d)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Strict)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(Strict)?;
            if members.contains_key(&key) {
                return Err(de::Error::custom(format!("key {key:?} stands twice in one mapping")));
            }
            members.insert(key, value);
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn yaml_values(text: &str) -> Vec<(usize, Result<Value, String>)> {
        documents(text, Format::Yaml).map(|d| (d.line, d.value)).collect()
    }

    #[test]
    fn documents_and_their_lines() {
        let text =
            "# head\n---\na: 1\n---\n\n# only a comment\n---\nb: |\n  x\n  --- y\n... \n---\nc: [1, two]\n";
        assert_eq!(
            yaml_values(text),
            [
                (3, Ok(json!({"a": 1}))),
                (8, Ok(json!({"b": "x\n--- y\n"}))),
                (13, Ok(json!({"c": [1, "two"]}))),
            ]
        );
        assert_eq!(yaml_values(""), []);
        assert_eq!(yaml_values("---\n---\n"), []);
        assert_eq!(yaml_values("\u{feff}a: 1"), [(1, Ok(json!({"a": 1})))]);
        assert_eq!(yaml_values("%YAML 1.2\n---\na: 1\r\n"), [(3, Ok(json!({"a": 1})))]);
        assert_eq!(yaml_values("--- {a: 1}\n--- {b: 2}\n").len(), 2);
    }

    #[test]
    fn a_broken_document_does_not_take_the_others_with_it() {
        let values = yaml_values("a: 1\n---\nb: [1\nc: {\n---\nd: 4\n");
        assert_eq!(values.len(), 3);
        assert_eq!(values[0].1, Ok(json!({"a": 1})));
        let error = values[1].1.as_ref().unwrap_err();
        assert!(error.contains("(line 4, column"), "{error}");
        assert_eq!(values[2].1, Ok(json!({"d": 4})));
    }

    #[test]
    fn keys_that_stand_twice_are_errors() {
        let error = yaml_values("a: {b: 1, b: 2}").remove(0).1.unwrap_err();
        assert!(error.contains("\"b\" stands twice"), "{error}");
        let error = documents(r#"{"a": 1, "a": 2}"#, Format::Json).next().unwrap().value.unwrap_err();
        assert!(error.contains("\"a\" stands twice"), "{error}");
    }

    #[test]
    fn json_values_one_after_the_other() {
        let found: Vec<_> = documents("{\"a\": 1}\n\n[2]\n{", Format::Json).collect();
        assert_eq!(found.len(), 3);
        assert_eq!((found[0].line, &found[0].value), (1, &Ok(json!({"a": 1}))));
        assert_eq!((found[1].line, &found[1].value), (3, &Ok(json!([2]))));
        assert_eq!(found[2].line, 4);
        assert!(found[2].value.is_err());
    }

    #[test]
    fn hostile_text_ends_in_an_error() {
        // An alias bomb, deep nesting, a number that JSON has not, control characters.
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let refs = vec![format!("*a{}", i - 1); 9].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        assert!(yaml_values(&bomb)[0].1.is_err());
        let deep = "[".repeat(100_000);
        assert!(yaml_values(&deep)[0].1.is_err());
        assert!(documents(&deep, Format::Json).next().unwrap().value.is_err());
        assert!(yaml_values("a: .nan")[0].1.is_err());
        assert!(yaml_values("a: \u{1}")[0].1.is_err());
        assert!(yaml_values("a: !thing 1")[0].1.is_err());
    }
}
