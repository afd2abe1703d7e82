//! kftray-commons
