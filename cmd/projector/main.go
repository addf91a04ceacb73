// Command projector folds events into the states of aggregates and serves them over HTTP.
// See projector --help and README.md.
package main

import (
	"os"

	"millrace/pipeline/keyring/kms"
	"millrace/pipeline/programs"
)

func main() { os.Exit(programs.Main("projector", nil, programs.WithKMS(kms.Open))) }
