//go:build !unix

package sandbox

import (
	"errors"
	"io"
)

// lockDir has no way here to keep a second sandbox out.
func lockDir(string) (io.Closer, error) {
	return nil, errors.New("a data directory cannot be locked on this system: run the sandbox in memory")
}
