// Command sandbox runs an embedded Kafka broker and schema registry for development. See
// sandbox --help and README.md.
package main

import (
	"os"

	"millrace/pipeline/programs"
)

func main() { os.Exit(programs.Main("sandbox", nil)) }
