// Command processor runs the pipelines of a topology: it reads events, runs them through
// stages, and writes the results in transactions. See processor --help and README.md.
package main

import (
	"os"

	"millrace/pipeline/app"
)

func main() {
	os.Exit(app.NewEnv().Main(os.Args[1:], app.Processor))
}
