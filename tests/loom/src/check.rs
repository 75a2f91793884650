// SPDX-License-Identifier: GPL-2.0
//! Runs models: with the orderings of the code, and with one of them weakened.

use std::{
    cell::RefCell,
    fs,
    panic::{self, AssertUnwindSafe, Location},
    path::Path,
    sync::Once,
};

/// The ordering of an atomic operation or a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Relaxed,
    Acquire,
    Release,
    Full,
}

/// A line of the code, and the ordering that it is given in place of its own.
#[derive(Clone, Debug)]
pub struct Weaker {
    file: &'static str,
    line: u32,
    text: &'static str,
    order: Order,
    /// Whether the model has run the line.
    is_run: bool,
}

thread_local! {
    /// The ordering that is weakened. Loom runs all threads of a model in one.
    static WEAKER: RefCell<Option<Weaker>> = const { RefCell::new(None) };
}

/// Returns the ordering of the operation at `place`: its own one, unless it is weakened.
pub fn order(own: Order, place: &Location<'_>) -> Order {
    WEAKER.with_borrow_mut(|weaker| match weaker {
        Some(weaker) if weaker.line == place.line() && is_same(place.file(), weaker.file) => {
            weaker.is_run = true;
            weaker.order
        }
        _ => own,
    })
}

/// Returns whether the compiler's name of a file is that of `file` in the project.
fn is_same(name: &str, file: &str) -> bool {
    name.ends_with(file) || file.ends_with(&format!("/{name}"))
}

/// A file of the kernel code, or of this crate, by its path in the project.
pub struct Source(pub &'static str);

impl Source {
    /// Gives `order` to the operation in the line `text`, which is the first such line
    /// after the first one with `above` in it.
    pub fn weaken(&self, above: &str, text: &'static str, order: Order) -> Weaker {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../..")
            .join(self.0);
        let file = fs::read_to_string(path).unwrap();
        let mut lines = (1..).zip(file.lines());
        lines
            .find(|(_, line)| line.contains(above))
            .unwrap_or_else(|| panic!("{} has no line with '{above}'", self.0));
        let (line, _) = lines
            .find(|(_, line)| line.trim() == text)
            .unwrap_or_else(|| panic!("{} has no line '{text}' after '{above}'", self.0));
        let (file, is_run) = (self.0, false);
        Weaker {
            file,
            line,
            text,
            order,
            is_run,
        }
    }
}

/// Runs `model` in all orders that have few preemptions.
fn run(model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// Checks that `model` holds, and that it fails with each of these orderings.
pub fn check<const N: usize>(model: fn(), weaker: [Weaker; N]) {
    expect_panics();
    run(model);
    for weaker in weaker {
        WEAKER.set(Some(weaker));
        let result = panic::catch_unwind(AssertUnwindSafe(|| run(model)));
        let Weaker {
            file,
            line,
            text,
            order,
            is_run,
        } = WEAKER.take().unwrap();
        assert!(is_run, "the model does not run {file}:{line}: {text}");
        assert!(
            result.is_err(),
            "the model holds with {order:?} at {file}:{line}: {text}"
        );
    }
}

/// Hides the messages of panics while an ordering is weakened.
fn expect_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if WEAKER.with_borrow(Option::is_none) {
                hook(info);
            }
        }));
    });
}
