//! Buffers that are used again: memory of a mebibyte and more goes back to the system whenever it is freed, and comes back
//! a page fault at a time, which costs as much as copying it.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;

/// Keeps buffers that nobody uses, up to a limit. A handle: clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    spare: Arc<Mutex<Vec<Vec<u8>>>>,
    most: usize,
}

/// A buffer that returns to its pool when it is dropped, or when the last [`Bytes`] made of it is.
#[derive(Debug)]
pub(crate) struct Pooled {
    bytes: Vec<u8>,
    pool: Pool,
}

impl Pool {
    /// A pool that keeps at most `most` buffers; how many are out is its user's to bound.
    #[must_use]
    pub(crate) fn new(most: usize) -> Self {
        Self { spare: Arc::default(), most }
    }

    /// A buffer. It holds what its last user left in it: set its length, then its bytes.
    #[must_use]
    pub(crate) fn take(&self) -> Pooled {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Pooled { bytes: spare.unwrap_or_default(), pool: self.clone() }
    }
}

impl Pooled {
    /// Shares the bytes.
    #[must_use]
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let mut spare = self.pool.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < self.pool.most {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Deref for Pooled {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_once_its_last_user_is_gone() {
        let pool = Pool::new(2);
        let mut buffer = pool.take();
        buffer.extend_from_slice(b"stone");
        let place = buffer.as_ptr();
        let bytes = buffer.freeze();
        let part = bytes.slice(1..3);
        drop(bytes);
        assert_ne!(pool.take().as_ptr(), place);
        assert_eq!(&part[..], b"to");
        drop(part);
        let (again, other) = (pool.take(), pool.take());
        assert!(again.as_ptr() == place || other.as_ptr() == place);
    }

    #[test]
    fn no_more_are_kept_than_allowed() {
        let pool = Pool::new(2);
        drop([pool.take(), pool.take(), pool.take()]);
        assert_eq!(pool.spare.lock().unwrap().len(), 2);
    }
}
