//! Loops on a timer that find the work no wake-up announced.
