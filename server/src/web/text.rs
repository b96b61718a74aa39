//! Every word of ours on the pages, in one place.

/// A page that says one thing.
pub(super) struct Message {
    pub(super) title: &'static str,
    pub(super) sentence: &'static str,
}

pub(super) const NO_KEY: Message = Message {
    title: "Open a link from qctl",
    sentence: "This page opens with a link that carries a key: run `qctl status` or `qctl show JOB` on your machine and open the link it prints.",
};

pub(super) const WRONG_KEY: Message = Message {
    title: "This link is out of date",
    sentence: "The key in this link is not the coordinator's key any more: run `qctl status` on your machine and open the link it prints.",
};

pub(super) const FOREIGN_NAME: Message = Message {
    title: "Not one of my names",
    sentence: "The coordinator answers pages only under its address or its public URL: open it by that, or start it with --public-url set to the address you use.",
};

pub(super) const NO_SUCH_PAGE: Message = Message {
    title: "No such page",
    sentence: "There is nothing at this address.",
};
