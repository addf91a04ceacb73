package cli

import (
	"errors"
	"fmt"

	"millrace/pipeline/kafka"
)

// Exit codes of every program.
const (
	ExitOK      = 0
	ExitFailure = 1 // it did not work, or it found something
	ExitUsage   = 2 // the command line, the environment or the topology is wrong
	ExitFenced  = 3 // another process has the same transactional id
)

// An ExitError ends the program with a code of its own. Its Err is printed as
// it is, and nothing is if it is nil.
type ExitError struct {
	Code int
	Err  error
}

func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

func (e *ExitError) Unwrap() error { return e.Err }

// A usageError is a fault of the command line: it is followed by a hint at --help.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// Usagef returns an error that ends the program with ExitUsage and points to
// --help. For a fault in a file, which help does not help with, return an
// [ExitError].
func Usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// ExitCode returns the code that an error ends the program with.
func ExitCode(err error) int {
	var exit *ExitError
	var usage *usageError
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &exit):
		return exit.Code
	case errors.As(err, &usage):
		return ExitUsage
	case errors.Is(err, kafka.ErrFenced):
		return ExitFenced
	}
	return ExitFailure
}
