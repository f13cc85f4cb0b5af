//! Quantities as `protocol::units` reads them, for CEL: patterns, and the number in one.

/// A duration as `protocol::units` reads it, without parts of a nanosecond.
macro_rules! span {
    () => {
        r"r'^ *[0-9]+(\.[0-9]+)? *(ns|us|ms|s|m|h) *$'"
    };
}
/// A size.
macro_rules! bytes {
    () => {
        r"r'^ *[0-9]+(\.[0-9]+)? *(B|kB|KiB|MB|MiB|GB|GiB) *$'"
    };
}
/// A link rate.
macro_rules! rate {
    () => {
        r"r'^ *[0-9]+(\.[0-9]+)? *(bit|kbit|Mbit|Gbit) *$'"
    };
}
/// The number of a quantity.
macro_rules! number {
    () => {
        r"double(self.find(r'[0-9]+(\.[0-9]+)?'))"
    };
}
/// A percentage. An exponent beyond two digits is beyond what a figure can be, or as good as.
macro_rules! percent {
    () => {
        r"r'^ *[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE](-[0-9]+|\+?0*[0-9]{1,2}))? *% *$'"
    };
}
