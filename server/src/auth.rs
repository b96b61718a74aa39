//! Who calls: tokens, roles, and the key in links.
