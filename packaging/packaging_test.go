// Package packaging tests what the folders below it hold: that the unit is
// understood and hardened, that packages come out the same twice and install as
// docs/install.md says, and that the manifests' configuration is accepted.
package packaging

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	// The program is built by a command of its own. With its parts in this test
	// too, a result of an older program is never taken from the test cache.
	_ "github.com/gatebook/gatebook/internal/cli"
)

// built is the binary, made once for all tests as packages have it.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "gatebook-packaging")
	if err != nil {
		return "", err
	}
	flags, err := os.ReadFile("ldflags")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s "+strings.TrimSpace(string(flags)), "-o", filepath.Join(dir, runtime.GOARCH, "gatebook"), "../cmd/gatebook")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.Join(err, errors.New(string(out)))
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	// What only commands read is read here, so that the test cache knows of it.
	for _, name := range []string{"package.sh", "ldflags", "debian/*", "systemd/*", "oci/*.go", "../docs/*.md", "../*.md", "../LICENSE"} {
		if names, err := filepath.Glob(name); err != nil || len(names) == 0 {
			panic(name + ": nothing there")
		} else if err := touch(names); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	if dir, err := built(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

func touch(names []string) error {
	for _, name := range names {
		if _, err := os.ReadFile(name); err != nil {
			return err
		}
	}
	return nil
}

// binaries is the folder with ARCH/gatebook.
func binaries(t *testing.T) string {
	t.Helper()
	dir, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func gatebook(t *testing.T) string { return filepath.Join(binaries(t), runtime.GOARCH, "gatebook") }

// needs fails with what is missing rather than passing over it.
func needs(t *testing.T, tool, debian string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Fatalf("%s is not installed: apt-get install %s, or make deps", tool, debian)
	}
}

// out runs a command that must succeed and returns all that it prints.
func out(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	b, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, b)
	}
	return string(b)
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// systemd itself reads the unit without a complaint, and finds it tight. The
// bound is in tenths; what is left is the network, which is the gate's business.
func TestUnit(t *testing.T) {
	needs(t, "systemd-analyze", "systemd")
	unit := filepath.Join(t.TempDir(), "gatebook.service")
	text := strings.ReplaceAll(read(t, "systemd/gatebook.service"), "/usr/bin/gatebook", gatebook(t))
	write(t, unit, text)
	if said := out(t, exec.Command("systemd-analyze", "--man=no", "verify", unit)); said != "" {
		t.Errorf("systemd says of the unit:\n%s", said)
	}
	out(t, exec.Command("systemd-analyze", "security", "--offline=yes", "--threshold=20", unit))
	// The same bound must be able to fail.
	loose := filepath.Join(t.TempDir(), "gatebook.service")
	write(t, loose, regexp.MustCompile(`(?m)^(SystemCallFilter|CapabilityBoundingSet)=.*\n`).ReplaceAllString(text, ""))
	if err := exec.Command("systemd-analyze", "security", "--offline=yes", "--threshold=20", loose).Run(); err == nil {
		t.Error("a unit without filter and bounds passes too")
	}
}

// The real program, run as the unit runs it, tells when it serves, reloads and
// stops, and feeds the watchdog.
func TestNotifies(t *testing.T) {
	dir := t.TempDir()
	gate := filepath.Join(dir, "gate")
	out(t, exec.Command(gatebook(t), "init", gate, "--upstream", "http://127.0.0.1:1", "--issuer", "http://127.0.0.1:1"))
	config := filepath.Join(gate, "gatebook.yaml")
	text := strings.ReplaceAll(read(t, config), `"127.0.0.1:8081"`, `"127.0.0.1:0"`)
	write(t, config, strings.ReplaceAll(text, `"127.0.0.1:9080"`, `"127.0.0.1:0"`))

	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.Command(gatebook(t), "serve", "-c", config)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(dir, "notify"), "WATCHDOG_USEC=300000")
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	hear := func(first string) {
		t.Helper()
		for buf := make([]byte, 4096); ; {
			n, err := c.Read(buf)
			if err != nil {
				cmd.Process.Kill()
				cmd.Wait()
				t.Fatalf("no %s: %v\n%s", first, err, said.String())
			}
			if line, _, _ := strings.Cut(string(buf[:n]), "\n"); line == first {
				return
			}
		}
	}
	hear("READY=1")
	hear("WATCHDOG=1")
	// As ExecReload= does it.
	out(t, exec.Command(gatebook(t), "reload", "-c", config))
	hear("RELOADING=1")
	hear("READY=1")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	hear("STOPPING=1")
	if err := cmd.Wait(); err != nil {
		t.Errorf("stop: %v\n%s", err, said.String())
	}
}

// packages makes the packages of this architecture in a new folder.
func packages(t *testing.T, dir string) string {
	t.Helper()
	needs(t, "dpkg-deb", "dpkg")
	cmd := exec.Command("./package.sh", dir)
	cmd.Env = append(os.Environ(), "BINARIES="+binaries(t), "ARCHES="+runtime.GOARCH, "SOURCE_DATE_EPOCH=1700000000", "CA_BUNDLE=")
	out(t, cmd)
	return dir
}

func one(t *testing.T, pattern string) string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) != 1 {
		t.Fatalf("%s: %v %v", pattern, names, err)
	}
	return names[0]
}

// The packages come out the same twice, are root's, and install.
func TestPackages(t *testing.T) {
	first, second := packages(t, filepath.Join(t.TempDir(), "dist")), packages(t, filepath.Join(t.TempDir(), "dist"))
	sums := read(t, filepath.Join(first, "SHA256SUMS"))
	if again := read(t, filepath.Join(second, "SHA256SUMS")); sums != again {
		t.Errorf("not the same twice:\n%s%s", sums, again)
	}
	if n := strings.Count(sums, "\n"); n != 3 {
		t.Errorf("SHA256SUMS names %d files, want tarball, package and image:\n%s", n, sums)
	}
	check := exec.Command("sha256sum", "-c", "--strict", "SHA256SUMS")
	check.Dir = first
	out(t, check)

	deb := one(t, filepath.Join(first, "*.deb"))
	list, err := exec.Command("dpkg-deb", "--fsys-tarfile", deb).Output()
	if err != nil {
		t.Fatal(err)
	}
	inDeb := listTar(t, list)
	for _, name := range []string{
		"usr/bin/gatebook", "usr/lib/systemd/system/gatebook.service", "usr/lib/sysusers.d/gatebook.conf", "usr/share/doc/gatebook/copyright",
		"usr/share/man/man1/gatebook.1.gz", "usr/share/bash-completion/completions/gatebook", "usr/share/zsh/vendor-completions/_gatebook", "usr/share/fish/vendor_completions.d/gatebook.fish",
	} {
		if !slices.Contains(inDeb, name) {
			t.Errorf("%s is not in the package", name)
		}
	}
	plain := exec.Command("gzip", "-dc", one(t, filepath.Join(first, "*.tar.gz")))
	archive, err := plain.Output()
	if err != nil {
		t.Fatal(err)
	}
	var inTar []string
	for _, name := range listTar(t, archive) {
		_, below, _ := strings.Cut(name, "/")
		inTar = append(inTar, "usr/"+below)
	}
	for _, name := range inDeb {
		if name != "usr/share/doc/gatebook/copyright" && !slices.Contains(inTar, name) {
			t.Errorf("%s is in the package and not in the tarball", name)
		}
	}
	t.Run("install", func(t *testing.T) { installs(t, deb) })
}

// listTar returns the files of an archive, after it found all of them root's,
// of the one time, and closed to writing by others.
func listTar(t *testing.T, b []byte) (names []string) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Mode&0o6022 != 0 || h.ModTime.Unix() != 1700000000 {
			t.Errorf("%s: owner %d:%d, mode %04o, time %v", h.Name, h.Uid, h.Gid, h.Mode, h.ModTime)
		}
		if h.Typeflag == tar.TypeReg {
			names = append(names, strings.TrimPrefix(h.Name, "./"))
		}
	}
}

// installs installs the package and follows docs/install.md, in a mount
// namespace with an /etc and a /var/lib of its own, so that this machine keeps
// its own. Then the gate's user, and no other, can work with what is there.
func installs(t *testing.T, deb string) {
	if os.Getuid() != 0 {
		t.Fatal("installing takes root: run this as root, as make test does in CI")
	}
	needs(t, "useradd", "passwd")
	_, steps, found := strings.Cut(read(t, "../docs/install.md"), "<!-- install -->\n```sh\n")
	steps, _, closed := strings.Cut(steps, "\n```")
	if !found || !closed {
		t.Fatal("docs/install.md has no marked steps")
	}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	out(t, exec.Command("dpkg-deb", "-R", deb, filepath.Join(dir, "tree")))
	script := filepath.Join(dir, "install.sh")
	write(t, script, `set -eux
cd "$1"
mkdir etc lib
cp -a /etc/. etc/
rm -rf etc/gatebook
mount --bind etc /etc
mount --bind lib /var/lib
# A service manager that runs here must not hear of this.
if [ -d /run/systemd ]; then mount -t tmpfs tmpfs /run/systemd; fi
export PATH=$PWD/tree/usr/bin:$PATH

for script in preinst postinst prerm postrm; do if [ -e tree/DEBIAN/$script ]; then sh -n tree/DEBIAN/$script; fi; done
sh tree/DEBIAN/postinst configure
`+steps+`
as() { runuser -u gatebook -- env PATH="$PATH" "$@"; }
as gatebook check
as gatebook verify
as gatebook search 'kind == "request"'
# The gate reads what it obeys and cannot change it.
if as touch /etc/gatebook/new || as sh -c 'echo >>/etc/gatebook/gatebook.yaml'; then exit 91; fi
# Nobody else sees anything.
for path in /etc/gatebook/gatebook.yaml /etc/gatebook/keys /var/lib/gatebook/book; do
	if runuser -u nobody -- ls "$path"; then exit 92; fi
done
# Upgrade and purge leave everything as it is.
before=$(find /etc/gatebook /var/lib/gatebook -printf '%p %u %g %m %s\n' | sort)
sh tree/DEBIAN/prerm upgrade 9
sh tree/DEBIAN/postinst configure 1
sh tree/DEBIAN/prerm remove
sh tree/DEBIAN/postrm remove
sh tree/DEBIAN/postrm purge
[ "$before" = "$(find /etc/gatebook /var/lib/gatebook -printf '%p %u %g %m %s\n' | sort)" ]
`)
	out(t, exec.Command("unshare", "--mount", "sh", script, dir))
}

// Every command that help names has a page, which the typesetter takes without
// a warning.
func TestManualPages(t *testing.T) {
	needs(t, "groff", "groff-base")
	dir := filepath.Join(t.TempDir(), "man")
	out(t, exec.Command(gatebook(t), "man", dir))
	checkPages(t, dir, nil)
	names, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil || len(names) == 0 {
		t.Fatalf("%v %v", names, err)
	}
	for _, name := range names {
		page := out(t, exec.Command("groff", "-man", "-Tascii", "-P-c", "-ww", name))
		base := strings.TrimSuffix(filepath.Base(name), ".1")
		if strings.Contains(page, "warning:") || !strings.Contains(page, base+" - ") {
			t.Errorf("%s:\n%s", name, page)
		}
	}
}

// checkPages goes down the commands as help lists them.
func checkPages(t *testing.T, dir string, path []string) {
	t.Helper()
	help := out(t, exec.Command(gatebook(t), append(path, "--help")...))
	page := read(t, filepath.Join(dir, strings.Join(append([]string{"gatebook"}, path...), "-")+".1"))
	for _, flag := range regexp.MustCompile(`(?m)^ +(?:-., )?--([a-z-]+)`).FindAllStringSubmatch(help, -1) {
		if flag[1] != "help" && !strings.Contains(page, `\-\-`+strings.ReplaceAll(flag[1], "-", `\-`)) {
			t.Errorf("gatebook %s: --%s is not in its page", strings.Join(path, " "), flag[1])
		}
	}
	_, list, found := strings.Cut(help, "Available Commands:\n")
	if !found {
		return
	}
	list, _, _ = strings.Cut(list, "\n\n")
	for line := range strings.Lines(list) {
		if name := strings.Fields(line)[0]; name != "help" {
			checkPages(t, dir, append(slices.Clone(path), name))
		}
	}
}

// The configuration in the manifests is one that the gate accepts, policies
// included.
func TestManifestConfiguration(t *testing.T) {
	dir := t.TempDir()
	out(t, exec.Command(gatebook(t), "init", filepath.Join(dir, "made"), "--upstream", "http://127.0.0.1:1", "--issuer", "http://127.0.0.1:1", "--self-signed"))
	dec := yaml.NewDecoder(strings.NewReader(read(t, "kubernetes/config.yaml")))
	config := filepath.Join(dir, "gatebook.yaml")
	for {
		var doc struct{ Data map[string]string }
		err := dec.Decode(&doc)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range doc.Data {
			to := filepath.Join(dir, name)
			if strings.HasSuffix(name, ".cedar") {
				to = filepath.Join(dir, "policies", name)
				if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			write(t, to, strings.NewReplacer(
				"/etc/gatebook/", dir+"/", "/var/lib/gatebook-keys/keys", filepath.Join(dir, "made", "keys"), "/var/lib/gatebook/book", filepath.Join(dir, "made", "data"),
				"/etc/gatebook-tls/tls", filepath.Join(dir, "made", "tls", "localhost"),
			).Replace(text))
		}
	}
	if said := out(t, exec.Command(gatebook(t), "check", config)); !strings.Contains(said, "2 routes") {
		t.Error(said)
	}
}
