package pipeline

import (
	"errors"
	"fmt"
)

// Class is the required reaction to an error. Only [ClassOf] decides it.
type Class uint8

const (
	// ClassAbort: the batch failed. Abort it, back off and retry. This is the
	// default class. Errors of brokers and of the registry always have it.
	ClassAbort Class = iota
	// ClassReject: the event is bad, and a retry cannot succeed. It becomes a dead
	// letter; processing continues with the next event.
	ClassReject
	// ClassFatal: the state is unknown, or retries cannot repair it. Stop the
	// process; a restart recovers the state.
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

// ClassOf returns the class of the outermost [RejectError] or [FatalError] in the
// error's chain, or ClassAbort if there is none. Of joined errors, the most severe
// class decides: fatal, then abort, then reject.
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

// Reason is a stable code for the cause of a rejected or dropped event. It is the
// value of a metric label and of the dlq.reason header. Reasons are constants, so
// a changed error text does not rename a time series.
type Reason string

// The reasons of Millrace itself. Stages may add their own in lower_snake_case.
const (
	ReasonBadFrame      Reason = "bad_frame"      // no Confluent frame, or an empty value
	ReasonUnknownSchema Reason = "unknown_schema" // the registry does not know the schema id
	ReasonUnknownType   Reason = "unknown_type"   // the topology does not name this event type
	ReasonBadSchema     Reason = "bad_schema"     // the writer's schema does not resolve to the current schema
	ReasonBadBody       Reason = "bad_body"       // the Avro body does not match its schema
	ReasonTrailingBytes Reason = "trailing_bytes" // bytes after the end of the Avro body
	ReasonTombstone     Reason = "tombstone"      // a null value instead of an event
	ReasonExpression    Reason = "expression"     // an expression failed on this event
	ReasonTooLarge      Reason = "too_large"      // larger than the topic allows
	ReasonBadTime       Reason = "bad_time"       // the topic does not accept the record's time
	ReasonNoKey         Reason = "no_key"         // the topic does not accept a record without a key
	ReasonRefused       Reason = "refused"        // Kafka refused the record
	ReasonPanic         Reason = "panic"          // a stage panicked
)

// Reasons returns the reasons of Millrace itself.
func Reasons() []Reason {
	return []Reason{
		ReasonBadFrame, ReasonUnknownSchema, ReasonUnknownType, ReasonBadSchema, ReasonBadBody, ReasonTrailingBytes,
		ReasonTombstone, ReasonExpression, ReasonTooLarge, ReasonPanic,
	}
}

// A RejectError rejects one event. Its class is [ClassReject].
type RejectError struct {
	Reason Reason
	Err    error
	Final  bool // the event cannot pass the stage, whatever its OnError is
}

// Reject returns a RejectError with a formatted message.
func Reject(reason Reason, format string, args ...any) error {
	return &RejectError{Reason: reason, Err: fmt.Errorf(format, args...)}
}

func (e *RejectError) Error() string { return string(e.Reason) + ": " + e.Err.Error() }
func (e *RejectError) Unwrap() error { return e.Err }

// A FatalError stops the process. Its class is [ClassFatal].
type FatalError struct{ Err error }

// Fatal returns a FatalError with a formatted message.
func Fatal(format string, args ...any) error { return &FatalError{fmt.Errorf(format, args...)} }

func (e *FatalError) Error() string { return e.Err.Error() }
func (e *FatalError) Unwrap() error { return e.Err }

// rejection returns the RejectError in err, and whether err has [ClassReject].
func rejection(err error) (*RejectError, bool) {
	if ClassOf(err) != ClassReject {
		return nil, false
	}
	var r *RejectError
	return r, errors.As(err, &r)
}

// ReasonOf returns the reason of an error of [ClassReject], or "" for other errors.
func ReasonOf(err error) Reason {
	if r, ok := rejection(err); ok {
		return r.Reason
	}
	return ""
}
