// Command producer encodes JSON lines as Avro events and sends them to topics. See
// producer --help and README.md.
package main

import (
	"os"

	"millrace/pipeline/keyring/kms"
	"millrace/pipeline/programs"
)

func main() { os.Exit(programs.Main("producer", nil, programs.WithKMS(kms.Open))) }
