//! Label selectors against labels.

use crate::model::{LabelSelector, Labels, Operator, Requirement};

impl LabelSelector {
    /// Whether `labels` fulfil every requirement; the empty selector matches everything.
    ///
    /// See "Labels and Selectors", section "Set-based requirement", of the Kubernetes documentation.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|r| r.matches(labels))
    }
}

impl Requirement {
    /// Whether `labels` fulfil this requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match (&self.operator, value) {
            (Operator::In(values), Some(value)) => values.contains(value),
            (Operator::In(_), None) => false,
            // "NotIn" also selects objects without the key.
            (Operator::NotIn(values), Some(value)) => !values.contains(value),
            (Operator::NotIn(_), None) => true,
            (Operator::Exists, value) => value.is_some(),
            (Operator::DoesNotExist, value) => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    fn selector(requirements: &[(&str, Operator)]) -> LabelSelector {
        let requirements = requirements
            .iter()
            .map(|(key, operator)| Requirement { key: (*key).to_owned(), operator: operator.clone() })
            .collect();
        LabelSelector { requirements }
    }

    fn values(v: &[&str]) -> Vec<String> {
        v.iter().map(|&v| v.to_owned()).collect()
    }

    #[test]
    fn every_operator_with_key_absent_other_and_equal() {
        let absent = labels(&[("other", "x")]);
        let equal = labels(&[("k", "a")]);
        let unlike = labels(&[("k", "c")]);
        let empty_value = labels(&[("k", "")]);
        let table = [
            (Operator::In(values(&["a", "b"])), [false, true, false, false]),
            (Operator::NotIn(values(&["a", "b"])), [true, false, true, true]),
            (Operator::Exists, [false, true, true, true]),
            (Operator::DoesNotExist, [true, false, false, false]),
        ];
        for (operator, expected) in table {
            let s = selector(&[("k", operator.clone())]);
            let got = [&absent, &equal, &unlike, &empty_value].map(|l| s.matches(l));
            assert_eq!(got, expected, "{operator:?}");
        }
    }

    #[test]
    fn requirements_are_anded_and_none_matches_all() {
        assert!(LabelSelector::default().matches(&Labels::new()));
        let both = selector(&[("a", Operator::Exists), ("b", Operator::In(values(&["1"])))]);
        assert!(both.matches(&labels(&[("a", ""), ("b", "1")])));
        assert!(!both.matches(&labels(&[("a", "")])));
        assert!(!both.matches(&labels(&[("b", "1")])));
    }
}
