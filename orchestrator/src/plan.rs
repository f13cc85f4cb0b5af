//! What will be run, in which order.
