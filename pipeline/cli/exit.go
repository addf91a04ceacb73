package cli

import (
	"errors"
	"fmt"

	"millrace/pipeline/kafka"
)

// Exit codes of all programs.
const (
	ExitOK      = 0
	ExitFailure = 1 // the command failed, or its check found something
	ExitUsage   = 2 // the command line, the environment or the topology is wrong
	ExitFenced  = 3 // another process has the same transactional id
)

// An ExitError ends the program with the exit code Code. [Env.Main] prints Err unchanged,
// and nothing if Err is nil.
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

// A usageError is an error in the command line. [Env.Main] adds a hint to --help.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// Usagef returns an error that ends the program with ExitUsage and a hint to --help. For
// errors in a file, where --help is of no use, return an [ExitError].
func Usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// ExitCode returns the exit code for an error.
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
