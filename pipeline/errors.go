package pipeline

import (
	"errors"
	"fmt"
)

// Class says what must happen after an error. It is decided in one place,
// [ClassOf].
type Class uint8

const (
	// ClassAbort: this batch failed. Roll back, back off, try again. Trouble
	// with a broker or the registry is always this. It is the class of every
	// error that does not say otherwise.
	ClassAbort Class = iota
	// ClassReject: this event is bad and will be bad again. It becomes a dead
	// letter; the events around it go on.
	ClassReject
	// ClassFatal: the state is unknown or cannot mend itself. Stop, and let a
	// restart recover.
	ClassFatal
)

func (c Class) String() string {
	switch c {
	case ClassReject:
		return "reject"
	case ClassFatal:
		return "fatal"
	default:
		return "abort"
	}
}

// ClassOf returns the class of an error: that of the outermost [RejectError] or
// [FatalError] in its chain, else ClassAbort.
func ClassOf(err error) Class {
	for err != nil {
		switch err.(type) {
		case *RejectError:
			return ClassReject
		case *FatalError:
			return ClassFatal
		}
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			worst := ClassReject
			for _, e := range joined.Unwrap() {
				switch ClassOf(e) {
				case ClassFatal:
					return ClassFatal
				case ClassAbort:
					worst = ClassAbort
				}
			}
			return worst
		}
		err = errors.Unwrap(err)
	}
	return ClassAbort
}

// Reason is a stable code for why an event was rejected or dropped: a metric
// label and the dlq.reason header. Rewording an error must not rename a series,
// so reasons are constants.
type Reason string

// The reasons Millrace gives. Stages may add their own, in lower_snake_case.
const (
	ReasonBadFrame      Reason = "bad_frame"      // no Confluent frame, or an empty value
	ReasonUnknownSchema Reason = "unknown_schema" // the registry does not know the schema id
	ReasonUnknownType   Reason = "unknown_type"   // the topology does not name this event type
	ReasonBadSchema     Reason = "bad_schema"     // the writer's schema does not resolve to ours
	ReasonBadBody       Reason = "bad_body"       // the Avro body does not match its schema
	ReasonTrailingBytes Reason = "trailing_bytes" // bytes after the end of the Avro body
	ReasonTombstone     Reason = "tombstone"      // a null value where an event is due
	ReasonExpression    Reason = "expression"     // an expression failed on this event
	ReasonTooLarge      Reason = "too_large"      // larger than the topic takes
	ReasonPanic         Reason = "panic"          // a stage panicked
)

// A RejectError says that one event is bad.
type RejectError struct {
	Reason Reason
	Err    error
}

// Reject returns a RejectError with a formatted message.
func Reject(reason Reason, format string, args ...any) error {
	return &RejectError{reason, fmt.Errorf(format, args...)}
}

func (e *RejectError) Error() string { return string(e.Reason) + ": " + e.Err.Error() }
func (e *RejectError) Unwrap() error { return e.Err }

// A FatalError says that this process must not go on.
type FatalError struct{ Err error }

// Fatal returns a FatalError with a formatted message.
func Fatal(format string, args ...any) error { return &FatalError{fmt.Errorf(format, args...)} }

func (e *FatalError) Error() string { return e.Err.Error() }
func (e *FatalError) Unwrap() error { return e.Err }

// rejection returns the RejectError that decides the class of err, if one does.
func rejection(err error) (*RejectError, bool) {
	if ClassOf(err) != ClassReject {
		return nil, false
	}
	var r *RejectError
	return r, errors.As(err, &r)
}

// ReasonOf returns the reason of an error of [ClassReject], else "".
func ReasonOf(err error) Reason {
	if r, ok := rejection(err); ok {
		return r.Reason
	}
	return ""
}
