//! Every write that a packet could meet, for tests that look at packets between any two of them.

use std::cell::RefCell;

use fairlead_policy::model::Protocol;

/// A write into the kernel's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// A word of a port set.
    Set(u32),
    /// The class of a port.
    Port(Protocol, u16),
    /// An element of a map comes, changes or goes.
    Element(&'static str),
    /// The generation word: a step is in force.
    Generation,
}

type Observer = Box<dyn FnMut(Write)>;

thread_local! {
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
}

/// Runs `work`, calling `observer` after each write that this thread makes meanwhile. Elements that are
/// otherwise written many at a time are then written one by one.
pub fn observed<R>(observer: impl FnMut(Write) + 'static, work: impl FnOnce() -> R) -> R {
    OBSERVER.set(Some(Box::new(observer)));
    let result = work();
    OBSERVER.set(None);
    result
}

/// Whether somebody looks.
pub(crate) fn are_observed() -> bool {
    OBSERVER.with_borrow(Option::is_some)
}

/// A write was made.
pub(crate) fn made(write: Write) {
    OBSERVER.with_borrow_mut(|observer| {
        if let Some(observer) = observer {
            observer(write);
        }
    });
}
