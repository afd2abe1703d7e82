//! Rules of the merge, case by case.
