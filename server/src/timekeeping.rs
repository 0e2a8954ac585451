//! Whether anything keeps the system's clock right.
//!
//! Source: Linux, adjtimex(2): the kernel knows whether a time service steers its clock. Neither the standard library nor
//! `rustix` has this call.

use std::io;

/// `TIME_ERROR`: nobody steers the clock, or not well enough.
const NOT_STEERED: libc::c_int = 5;

/// Whether a time service (NTP) steers the clock.
///
/// # Errors
/// When the kernel does not say.
#[expect(
    unsafe_code,
    reason = "the system call has no safe wrapper; it fills one structure and, with `modes` 0, changes nothing"
)]
pub(crate) fn is_steered() -> io::Result<bool> {
    // SAFETY: `timex` has integers only, for which all zeros is a value.
    let mut timex = unsafe { std::mem::zeroed::<libc::timex>() };
    // SAFETY: by adjtimex(2) the call writes into this structure only, which lives until it returns.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 { Err(io::Error::last_os_error()) } else { Ok(state != NOT_STEERED) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_says() {
        super::is_steered().unwrap();
    }
}
