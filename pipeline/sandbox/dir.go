package sandbox

import (
	"errors"
	"io/fs"
	"os"
)

// readFile returns the content of a file, or nil if the file does not exist.
func readFile(name string) ([]byte, error) {
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}
