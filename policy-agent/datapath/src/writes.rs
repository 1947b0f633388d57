//! Every write that a packet could meet, for tests that look at packets between any two of them.

use std::cell::RefCell;
use std::io;

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

/// When an observer is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before a write, which an error refuses in the kernel's place.
    Before(Write),
    /// After a write; an error reaches whoever made it as if it had failed.
    After(Write),
}

type Observer = Box<dyn FnMut(Moment) -> io::Result<()>>;

thread_local! {
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
}

/// Runs `work`, calling `observer` before and after each write that this thread makes meanwhile. Elements that are
/// otherwise written many at a time are then written one by one.
pub fn observed<R>(observer: impl FnMut(Moment) -> io::Result<()> + 'static, work: impl FnOnce() -> R) -> R {
    OBSERVER.set(Some(Box::new(observer)));
    let result = work();
    OBSERVER.set(None);
    result
}

/// Whether somebody looks.
pub(crate) fn are_observed() -> bool {
    OBSERVER.with_borrow(Option::is_some)
}

/// Makes a write.
pub(crate) fn make(write: Write, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    if !are_observed() {
        return work();
    }
    tell(Moment::Before(write))?;
    work()?;
    tell(Moment::After(write))
}

fn tell(moment: Moment) -> io::Result<()> {
    OBSERVER.with_borrow_mut(|observer| match observer {
        Some(observer) => observer(moment),
        None => Ok(()),
    })
}
