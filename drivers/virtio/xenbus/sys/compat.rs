// SPDX-License-Identifier: GPL-2.0

//! What differs between the versions of the `kernel` crate that this builds with, Linux 7.2 and
//! 7.3, written so that it is right with each: nothing here asks for the version.
//!
//! In 7.2 the C enums of callbacks are integers, parameters of a module are read by reference, and
//! barriers are functions without arguments; in 7.3 the enums are types of their own, around the
//! integer, parameters are read by value, and the kind of a barrier is an argument. Only 7.3 has
//! `EPROTO`, and a spinlock for data that interrupt handlers use.

use super::bindings;
use core::{
    borrow::Borrow,
    mem::transmute_copy, //
};
use kernel::{
    prelude::*,
    sync::lock::{
        Backend,
        Lock, //
    },
};

macro_rules! enumerators {
    ($($name:ident: $type:ident = $value:ident;)*) => {
        $(
            pub(crate) const $name: bindings::$type = {
                // SAFETY: The type is an integer as large as C's enum, or a transparent structure
                // around one for which every value is valid.
                unsafe { transmute_copy::<u32, bindings::$type>(&bindings::$value) }
            };
        )*
    };
}

enumerators! {
    DMA_FROM_DEVICE: dma_data_direction = VXB_DMA_FROM_DEVICE;
    DMA_TO_DEVICE: dma_data_direction = VXB_DMA_TO_DEVICE;
    IRQ_HANDLED: irqreturn_t = VXB_IRQ_HANDLED;
}

/// The value of a parameter of the module.
pub(crate) fn parameter(value: impl Borrow<u32>) -> u32 {
    *value.borrow()
}

/// Loads before it are done before loads after it, as seen by other CPUs.
#[inline]
pub(crate) fn smp_rmb() {
    // SAFETY: A barrier may be anywhere.
    unsafe { bindings::smp_rmb() };
}

/// Protocol error.
pub(crate) fn eproto() -> Error {
    // CAST: It is one of C's small numbers.
    Error::from_errno(-(bindings::EPROTO as c_int))
}

/// A spinlock that is held with interrupts off. Of several locks the one taken last must be
/// released first.
pub(crate) type SpinLockIrq<T> = Lock<T, SpinLockIrqBackend>;

/// Creates an initialiser of a [`SpinLockIrq`] with a lock class of its own.
macro_rules! new_spinlock_irq {
    ($inner:expr, $name:literal) => {
        $crate::sys::compat::SpinLockIrq::new(
            $inner,
            kernel::optional_name!($name),
            kernel::static_lock_class!(),
        )
    };
}
pub(crate) use new_spinlock_irq;

/// How a [`SpinLockIrq`] is taken.
pub(crate) struct SpinLockIrqBackend;

// SAFETY: `spinlock_t` ensures mutual exclusion. `relock` is the default one, which calls `lock`.
unsafe impl Backend for SpinLockIrqBackend {
    type State = bindings::spinlock_t;

    /// The interrupt state before.
    type GuardState = c_ulong;

    unsafe fn init(ptr: *mut Self::State, name: *const c_char, key: *mut bindings::lock_class_key) {
        // SAFETY: By the requirements of this function `ptr` is valid for writes, and `name` and
        // `key` live for ever.
        unsafe { bindings::__spin_lock_init(ptr, name, key) };
    }

    unsafe fn lock(ptr: *mut Self::State) -> Self::GuardState {
        // SAFETY: By the requirement of this function the lock is initialised.
        unsafe { bindings::vxb_spin_lock_irqsave(ptr) }
    }

    unsafe fn try_lock(ptr: *mut Self::State) -> Option<Self::GuardState> {
        let mut flags = 0;

        // SAFETY: By the requirement of this function the lock is initialised; `flags` is valid
        // for writes.
        unsafe { bindings::vxb_spin_trylock_irqsave(ptr, &mut flags) }.then_some(flags)
    }

    unsafe fn unlock(ptr: *mut Self::State, guard_state: &Self::GuardState) {
        // SAFETY: By the requirement of this function the caller has the lock, which it took with
        // `guard_state`.
        unsafe { bindings::vxb_spin_unlock_irqrestore(ptr, *guard_state) };
    }

    unsafe fn assert_is_held(ptr: *mut Self::State) {
        // SAFETY: By the requirement of this function the lock is initialised.
        unsafe { bindings::spin_assert_is_held(ptr) };
    }
}
