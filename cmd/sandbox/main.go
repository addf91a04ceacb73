// Command sandbox runs an embedded Kafka broker and schema registry for development. See
// sandbox --help and README.md.
package main

import (
	"os"

	"millrace/pipeline/app"
)

func main() {
	os.Exit(app.NewEnv().Main(os.Args[1:], app.Sandbox))
}
