#!/bin/bash
# Makes everything that is handed out, in a folder that is new or empty:
#
#	packaging/package.sh DIR
#
# a tarball and a Debian package for each architecture, an OCI image layout for
# both, and SHA256SUMS. What goes in decides what comes out, byte by byte.
#
#	ARCHES             "amd64 arm64"
#	BINARIES           folder with ARCH/gatebook; unset: they are built here
#	CA_BUNDLE          authorities for the image; unset: those of this machine
#	SOURCE_DATE_EPOCH  time of all files; unset: that of the last commit
set -euo pipefail

[ $# = 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
[ -z "$(ls -A "$out")" ] || { echo "$0: $out is not empty" >&2; exit 1; }
cd "$(dirname "$0")/.."

go=${GO:-go}
arches=${ARCHES:-amd64 arm64}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
# Nothing of whoever runs this may get in.
export LC_ALL=C TZ=UTC
umask 022

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
binaries=${BINARIES:-}
if [ -z "$binaries" ]; then
	binaries=$work/bin
	for arch in $arches; do
		CGO_ENABLED=0 GOOS=linux GOARCH=$arch "$go" build -trimpath -buildvcs=true -ldflags="-s $(cat packaging/ldflags)" -o "$binaries/$arch/gatebook" ./cmd/gatebook
	done
fi

# Manual pages and completions are the same for all architectures; a binary that
# runs here makes them.
native=$binaries/$("$go" env GOHOSTARCH)/gatebook
[ -x "$native" ] || { echo "$0: $native is needed, to make the manual pages" >&2; exit 1; }
version=$("$native" version --json | sed -n 's/.*"version": "v\{0,1\}\([^"]*\)".*/\1/p')
[ "$version" != "(devel)" ] || version=0.0.0-devel
"$native" man "$work/man"
gzip -9n "$work"/man/*.1
for shell in bash zsh fish; do "$native" completion "$shell" >"$work/gatebook.$shell"; done

# tree ROOT ARCH lays out what belongs below /usr.
tree() {
	local root=$1
	install -D -m 0755 "$binaries/$2/gatebook" "$root/bin/gatebook"
	install -D -m 0644 -t "$root/share/man/man1" "$work"/man/*.1.gz
	install -D -m 0644 "$work/gatebook.bash" "$root/share/bash-completion/completions/gatebook"
	install -D -m 0644 "$work/gatebook.zsh" "$root/share/zsh/vendor-completions/_gatebook"
	install -D -m 0644 "$work/gatebook.fish" "$root/share/fish/vendor_completions.d/gatebook.fish"
	install -D -m 0644 -t "$root/share/doc/gatebook" README.md CHANGELOG.md docs/*.md
	install -D -m 0644 -t "$root/lib/systemd/system" packaging/systemd/gatebook.service
	install -D -m 0644 packaging/systemd/gatebook.sysusers "$root/lib/sysusers.d/gatebook.conf"
}

# settle gives all files the one time.
settle() { find "$1" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +; }

images=()
for arch in $arches; do
	name=gatebook-$version-linux-$arch
	tree "$work/$name" "$arch"
	install -m 0644 LICENSE "$work/$name/share/doc/gatebook/LICENSE"
	settle "$work/$name"
	tar -C "$work" --sort=name --format=ustar --owner=0 --group=0 --numeric-owner -cf - "$name" | gzip -n >"$out/$name.tar.gz"

	# A tilde sorts what comes before a release before it.
	debversion=${version/-/\~}
	root=$work/deb-$arch
	tree "$root/usr" "$arch"
	install -D -m 0644 packaging/debian/copyright "$root/usr/share/doc/gatebook/copyright"
	size=$(du -k -s --apparent-size "$root" | cut -f1)
	mkdir "$root/DEBIAN"
	sed -e "s|@VERSION@|$debversion|" -e "s|@ARCH@|$arch|" -e "s|@SIZE@|$size|" packaging/debian/control.in >"$root/DEBIAN/control"
	install -m 0755 packaging/debian/postinst packaging/debian/prerm packaging/debian/postrm "$root/DEBIAN/"
	(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
	settle "$root"
	dpkg-deb --root-owner-group -Zgzip --build "$root" "$out/gatebook_${debversion}_$arch.deb" >/dev/null
	images+=(-binary "$arch=$binaries/$arch/gatebook")
done

"$go" run ./packaging/oci -version "$version" ${CA_BUNDLE:+-ca "$CA_BUNDLE"} "${images[@]}" -o "$work/image" >/dev/null
settle "$work/image"
tar -C "$work/image" --sort=name --format=ustar --owner=0 --group=0 --numeric-owner -cf "$out/gatebook-$version-oci.tar" .

(cd "$out" && sha256sum -- * >"$work/SHA256SUMS")
mv "$work/SHA256SUMS" "$out/SHA256SUMS"
ls "$out"
