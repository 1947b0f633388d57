//! Label selectors.

use std::collections::BTreeMap;

use fairlead_policy::model::{LabelSelector, Operator, Requirement};
use serde::Deserialize;
use serde_json::Value;

use super::names::{check_label_key, check_label_value};
use crate::object::FieldError;

/// A selector as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Selector {
    match_labels: Option<BTreeMap<String, String>>,
    match_expressions: Option<Vec<Expression>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expression {
    key: String,
    operator: String,
    values: Option<Vec<String>>,
}

impl Selector {
    /// The selector, and what is wrong with it: requirements that are wrong are left out of it.
    pub(super) fn convert(&self, at: &str, errors: &mut Vec<FieldError>) -> LabelSelector {
        let mut requirements = Vec::new();
        for (key, value) in self.match_labels.iter().flatten() {
            let field = format!("{at}.matchLabels[{key:?}]");
            match check_label_key(key).and_then(|()| check_label_value(value)) {
                Ok(()) => requirements
                    .push(Requirement { key: key.clone(), operator: Operator::In(vec![value.clone()]) }),
                Err(e) => errors.push(FieldError::new(field, e)),
            }
        }
        for (i, expression) in self.match_expressions.iter().flatten().enumerate() {
            match expression.convert() {
                Ok(requirement) => requirements.push(requirement),
                Err((field, message)) => {
                    errors.push(FieldError::new(format!("{at}.matchExpressions[{i}].{field}"), message));
                }
            }
        }
        requirements.sort();
        requirements.dedup();
        LabelSelector { requirements }
    }
}

impl Expression {
    fn convert(&self) -> Result<Requirement, (String, String)> {
        check_label_key(&self.key).map_err(|e| ("key".to_owned(), e))?;
        let mut values = self.values.clone().unwrap_or_default();
        for (i, value) in values.iter().enumerate() {
            check_label_value(value).map_err(|e| (format!("values[{i}]"), e))?;
        }
        values.sort();
        values.dedup();
        let no_values = values.is_empty();
        let operator = match (self.operator.as_str(), no_values) {
            ("In", false) => Operator::In(values),
            ("NotIn", false) => Operator::NotIn(values),
            ("Exists", true) => Operator::Exists,
            ("DoesNotExist", true) => Operator::DoesNotExist,
            ("In" | "NotIn", true) => {
                return Err(("values".to_owned(), format!("{} needs at least one value", self.operator)));
            }
            ("Exists" | "DoesNotExist", false) => {
                return Err(("values".to_owned(), format!("{} takes no values", self.operator)));
            }
            (other, _) => {
                let message = format!("{other:?} is none of In, NotIn, Exists, DoesNotExist");
                return Err(("operator".to_owned(), message));
            }
        };
        Ok(Requirement { key: self.key.clone(), operator })
    }
}

/// As much of a selector as can be read: it matches at least what the whole one would.
pub(super) fn readable(value: Option<&Value>) -> LabelSelector {
    let mut requirements = Vec::new();
    let labels = value.and_then(|v| v.get("matchLabels")).and_then(Value::as_object);
    for (key, value) in labels.into_iter().flatten() {
        if let Value::String(value) = value
            && check_label_key(key).is_ok()
            && check_label_value(value).is_ok()
        {
            let operator = Operator::In(vec![value.clone()]);
            requirements.push(Requirement { key: key.clone(), operator });
        }
    }
    let expressions = value.and_then(|v| v.get("matchExpressions")).and_then(Value::as_array);
    for expression in expressions.into_iter().flatten() {
        let requirement = Expression::deserialize(expression).ok().and_then(|e| e.convert().ok());
        requirements.extend(requirement);
    }
    requirements.sort();
    requirements.dedup();
    LabelSelector { requirements }
}
