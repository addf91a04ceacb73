// Command processor runs the pipelines of a topology: it reads events, runs them through
// stages, and writes the results in transactions. See processor --help and README.md.
package main

import (
	"os"

	"millrace/pipeline/programs"
)

func main() { os.Exit(programs.Main("processor", nil)) }
