// Command producer is described by its own --help and in README.md.
package main

import (
	"os"

	"millrace/pipeline/programs"
)

func main() { os.Exit(programs.Main("producer", nil)) }
