//! Strings, labels, selectors and blocks, stored once and compared by id.

use std::cell::Cell;

use ipnetwork::IpNetwork;

use super::intern::Interner;
use super::prefix::Prefix;
use crate::model::{LabelSelector, Labels, Operator, Requirement};

/// A string.
pub(super) type Text = u32;
/// A label: key and value.
pub(super) type Label = u32;
/// The labels of an object: a sorted list of [`Label`].
pub(super) type LabelSet = u32;
/// A label selector.
pub(super) type Selector = u32;
/// An `ipBlock`.
pub(super) type Block = u32;

/// Key and value of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pair {
    key: Text,
    value: Text,
}

/// One requirement of a selector; values are whole labels, sorted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Term {
    key: Text,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Test {
    In(Box<[Label]>),
    NotIn(Box<[Label]>),
    Exists,
    DoesNotExist,
}

/// An `ipBlock` in its one form: excepts sorted, those that say nothing left out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct BlockShape {
    /// `cidr`.
    pub(super) cidr: Prefix,
    /// `except`.
    pub(super) except: Box<[Prefix]>,
}

/// All that is interned.
#[derive(Debug, Default)]
pub(super) struct Vocabulary {
    pub(super) texts: Interner<Box<str>>,
    labels: Interner<Pair>,
    sets: Interner<Box<[Label]>>,
    selectors: Interner<Box<[Term]>>,
    pub(super) blocks: Interner<BlockShape>,
    evaluations: Cell<u64>,
}

impl Vocabulary {
    /// A reference to a string.
    pub(super) fn acquire_text(&mut self, text: &str) -> Text {
        match self.texts.find(text) {
            Some(id) => {
                self.texts.retain(id);
                id
            }
            None => self.texts.acquire(text.into()).0,
        }
    }

    /// The string of `id`.
    pub(super) fn text(&self, id: Text) -> &str {
        self.texts.get(id)
    }

    fn acquire_label(&mut self, key: &str, value: &str) -> Label {
        let pair = Pair { key: self.acquire_text(key), value: self.acquire_text(value) };
        let (id, new) = self.labels.acquire(pair);
        if !new {
            self.release_pair(pair);
        }
        id
    }

    fn release_label(&mut self, id: Label) {
        if let Some(pair) = self.labels.release(id) {
            self.release_pair(pair);
        }
    }

    fn release_pair(&mut self, pair: Pair) {
        self.texts.release(pair.key);
        self.texts.release(pair.value);
    }

    /// A reference to a set of labels.
    pub(super) fn acquire_labels(&mut self, labels: &Labels) -> LabelSet {
        let mut set: Vec<_> = labels.iter().map(|(k, v)| self.acquire_label(k, v)).collect();
        set.sort_unstable();
        match self.sets.find(&*set) {
            Some(id) => {
                self.sets.retain(id);
                for label in set {
                    self.release_label(label);
                }
                id
            }
            None => self.sets.acquire(set.into()).0,
        }
    }

    /// Gives a set's reference back.
    pub(super) fn release_labels(&mut self, id: LabelSet) {
        if let Some(set) = self.sets.release(id) {
            for &label in &set {
                self.release_label(label);
            }
        }
    }

    /// The labels of a set, sorted by id.
    pub(super) fn labels(&self, id: LabelSet) -> &[Label] {
        self.sets.get(id)
    }

    /// A set as the model has it.
    pub(super) fn decode_labels(&self, id: LabelSet) -> Labels {
        self.labels(id).iter().map(|&label| self.decode_label(label)).collect()
    }

    fn decode_label(&self, id: Label) -> (String, String) {
        let pair = self.labels.get(id);
        (self.text(pair.key).to_owned(), self.text(pair.value).to_owned())
    }

    /// A reference to a selector.
    pub(super) fn acquire_selector(&mut self, selector: &LabelSelector) -> Selector {
        let mut terms: Vec<_> = selector.requirements.iter().map(|r| self.acquire_term(r)).collect();
        terms.sort_unstable();
        // Each distinct term holds its references once.
        for i in (1..terms.len()).rev() {
            if terms[i] == terms[i - 1] {
                let twin = terms.remove(i);
                self.release_term(&twin);
            }
        }
        match self.selectors.find(&*terms) {
            Some(id) => {
                self.selectors.retain(id);
                for term in &terms {
                    self.release_term(term);
                }
                id
            }
            None => self.selectors.acquire(terms.into()).0,
        }
    }

    fn acquire_term(&mut self, requirement: &Requirement) -> Term {
        let key = self.acquire_text(&requirement.key);
        let mut labels = |values: &[String]| {
            let mut labels: Vec<_> = values.iter().map(|v| self.acquire_label(&requirement.key, v)).collect();
            labels.sort_unstable();
            for i in (1..labels.len()).rev() {
                if labels[i] == labels[i - 1] {
                    self.release_label(labels.remove(i));
                }
            }
            labels.into_boxed_slice()
        };
        let test = match &requirement.operator {
            Operator::In(values) => Test::In(labels(values)),
            Operator::NotIn(values) => Test::NotIn(labels(values)),
            Operator::Exists => Test::Exists,
            Operator::DoesNotExist => Test::DoesNotExist,
        };
        Term { key, test }
    }

    fn release_term(&mut self, term: &Term) {
        if let Test::In(labels) | Test::NotIn(labels) = &term.test {
            for &label in labels {
                self.release_label(label);
            }
        }
        self.texts.release(term.key);
    }

    /// One reference more to a selector.
    pub(super) fn retain_selector(&mut self, id: Selector) {
        self.selectors.retain(id);
    }

    /// Gives a selector's reference back.
    pub(super) fn release_selector(&mut self, id: Selector) {
        if let Some(terms) = self.selectors.release(id) {
            for term in &terms {
                self.release_term(term);
            }
        }
    }

    /// A selector as the model has it.
    pub(super) fn decode_selector(&self, id: Selector) -> LabelSelector {
        let values = |labels: &[Label]| {
            let mut values: Vec<_> = labels.iter().map(|&label| self.decode_label(label).1).collect();
            values.sort_unstable();
            values
        };
        let decode = |term: &Term| Requirement {
            key: self.text(term.key).to_owned(),
            operator: match &term.test {
                Test::In(labels) => Operator::In(values(labels)),
                Test::NotIn(labels) => Operator::NotIn(values(labels)),
                Test::Exists => Operator::Exists,
                Test::DoesNotExist => Operator::DoesNotExist,
            },
        };
        let mut requirements: Vec<_> = self.selectors.get(id).iter().map(decode).collect();
        requirements.sort_unstable();
        LabelSelector { requirements }
    }

    /// Whether `labels`, sorted, fulfil a selector.
    pub(super) fn matches(&self, selector: Selector, labels: &[Label]) -> bool {
        self.evaluations.set(self.evaluations.get() + 1);
        let has_any = |wanted: &[Label]| wanted.iter().any(|label| labels.binary_search(label).is_ok());
        let has_key = |key| labels.iter().any(|&label| self.labels.get(label).key == key);
        self.selectors.get(selector).iter().all(|term| match &term.test {
            Test::In(wanted) => has_any(wanted),
            Test::NotIn(unwanted) => !has_any(unwanted),
            Test::Exists => has_key(term.key),
            Test::DoesNotExist => !has_key(term.key),
        })
    }

    /// How often [`Vocabulary::matches`] was asked.
    pub(super) fn evaluations(&self) -> u64 {
        self.evaluations.get()
    }

    /// Whether a selector matches everything.
    pub(super) fn matches_all(&self, selector: Selector) -> bool {
        self.selectors.get(selector).is_empty()
    }

    /// A label that everything the selector matches has, if there is one such: the rarest.
    pub(super) fn required_label(&self, selector: Selector) -> Option<Label> {
        self.alternatives(selector)
            .filter_map(|labels| <[Label; 1]>::try_from(labels).ok())
            .map(|[l]| l)
            .min_by_key(|&label| (self.labels.references(label), label))
    }

    /// Labels one of which everything that the selector matches has: the rarest such choice.
    pub(super) fn required_labels(&self, selector: Selector) -> Option<&[Label]> {
        let rarity = |labels: &&[Label]| -> u64 {
            labels.iter().map(|&label| u64::from(self.labels.references(label))).sum()
        };
        self.alternatives(selector).min_by_key(rarity)
    }

    fn alternatives(&self, selector: Selector) -> impl Iterator<Item = &[Label]> {
        self.selectors.get(selector).iter().filter_map(|term| match &term.test {
            Test::In(labels) => Some(&**labels),
            _ => None,
        })
    }

    /// How many things are interned.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let Self { texts, labels, sets, selectors, blocks, .. } = self;
        texts.len() + labels.len() + sets.len() + selectors.len() + blocks.len()
    }

    /// A reference to an `ipBlock`.
    pub(super) fn acquire_block(&mut self, cidr: IpNetwork, except: &[IpNetwork]) -> Block {
        let cidr = Prefix::from(cidr);
        let mut except: Vec<_> = except.iter().map(|&e| Prefix::from(e)).collect();
        // An except of the other family, or beside the block, takes nothing away.
        except.retain(|&e| cidr.overlaps(e));
        except.sort_unstable();
        except.dedup();
        self.blocks.acquire(BlockShape { cidr, except: except.into() }).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    fn requirement(key: &str, operator: Operator) -> Requirement {
        Requirement { key: key.to_owned(), operator }
    }

    #[test]
    fn agrees_with_the_plain_matcher_and_forgets_everything() {
        let sets = [
            labels(&[]),
            labels(&[("a", "1")]),
            labels(&[("a", "2"), ("b", "1")]),
            labels(&[("b", ""), ("c", "1")]),
        ];
        let v = |s: &[&str]| s.iter().map(|&s| s.to_owned()).collect::<Vec<_>>();
        let mut requirements = Vec::new();
        for key in ["a", "b", "d"] {
            for values in [v(&[]), v(&["1"]), v(&["1", "2"]), v(&[""])] {
                requirements.push(requirement(key, Operator::In(values.clone())));
                requirements.push(requirement(key, Operator::NotIn(values)));
            }
            requirements.push(requirement(key, Operator::Exists));
            requirements.push(requirement(key, Operator::DoesNotExist));
        }
        let mut vocabulary = Vocabulary::default();
        let ids: Vec<_> = sets.iter().map(|s| vocabulary.acquire_labels(s)).collect();
        for first in &requirements {
            for second in &requirements {
                let mut selector = LabelSelector { requirements: vec![first.clone(), second.clone()] };
                let id = vocabulary.acquire_selector(&selector);
                for (set, &set_id) in sets.iter().zip(&ids) {
                    let got = vocabulary.matches(id, vocabulary.labels(set_id));
                    assert_eq!(got, selector.matches(set), "{selector:?} {set:?}");
                    if got && let Some(any) = vocabulary.required_labels(id) {
                        assert!(any.iter().any(|l| vocabulary.labels(set_id).contains(l)));
                    }
                }
                selector.requirements.sort_unstable();
                selector.requirements.dedup();
                assert_eq!(vocabulary.decode_selector(id), selector);
                vocabulary.release_selector(id);
            }
        }
        for (set, id) in sets.iter().zip(ids) {
            assert_eq!(vocabulary.decode_labels(id), *set);
            vocabulary.release_labels(id);
        }
        assert_eq!(vocabulary.len(), 0);
    }
}
