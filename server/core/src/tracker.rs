//! Trackers are compared without leading zeros and without regard to case.

/// The key under which a tracker is found: upper case, and every run of digits without its leading
/// zeros, so that `intg-88` finds `INTG-088`.
///
/// ```
/// assert_eq!(qctl_server_core::tracker::key("INTG-088"), "INTG-88");
/// assert_eq!(qctl_server_core::tracker::key("x-000"), "X-0");
/// ```
pub fn key(tracker: &str) -> String {
    let mut key = String::with_capacity(tracker.len());
    let mut chars = tracker.trim().chars().peekable();
    let mut in_number = false;
    while let Some(c) = chars.next() {
        let leading_zero = c == '0' && !in_number && chars.peek().is_some_and(char::is_ascii_digit);
        if leading_zero {
            continue;
        }
        in_number = c.is_ascii_digit();
        key.extend(c.to_uppercase());
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_inside_and_behind_a_number_stay() {
        assert_eq!(key("INTG-1001"), "INTG-1001");
        assert_eq!(key("intg-0100"), "INTG-100");
        assert_eq!(key("v00.007"), "V0.7");
        assert_eq!(key(""), "");
    }
}
