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
/// What a link rate is in bits a second.
macro_rules! bits_per_second {
    () => {
        concat!(
            number!(),
            " * (self.contains('Gbit') ? 1e9 : self.contains('Mbit') ? 1e6 : self.contains('kbit') ? 1e3 : 1.0)"
        )
    };
}
/// What a size is in bytes.
macro_rules! byte_count {
    () => {
        concat!(
            number!(),
            " * (self.contains('GiB') ? 1073741824.0 : self.contains('GB') ? 1e9 : self.contains('MiB') ? 1048576.0 : \
             self.contains('MB') ? 1e6 : self.contains('KiB') ? 1024.0 : self.contains('kB') ? 1e3 : 1.0)"
        )
    };
}
/// A percentage. An exponent beyond two digits is beyond what a figure can be, or as good as.
macro_rules! percent {
    () => {
        r"r'^ *[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE](-[0-9]+|\+?0*[0-9]{1,2}))? *% *$'"
    };
}
